"""Structured logs: one JSON object per line on stderr, without payloads and personal data."""

import logging
import sys

import structlog

Logger = structlog.typing.FilteringBoundLogger


def configure(level: str) -> None:
    """Configures logging for the process; ``level`` is debug, info, warning or error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.EventRenamer("event"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def logger() -> Logger:
    """Returns the process's logger."""
    log: Logger = structlog.get_logger()
    return log
