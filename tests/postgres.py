"""A PostgreSQL server of the tests' own, from Debian's programs, in a folder of its own."""

import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import sqlalchemy as sa
from psycopg import sql

SECONDS = 60
"""How long the server may take to start or to stop on a busy machine."""

_SETTINGS = (
    "listen_addresses=",  # a socket in its own folder only
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=16MB",
)


class Postgres:
    """A server that runs. Everybody needs a password, so that every URL has one to hide.

    It sorts text as people do and not by bytes: nothing of ours may depend on that.
    """

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            raise FileNotFoundError("there is no PostgreSQL: `.ci/packages tests` installs it")
        self._programs = found[-1].parent
        self.password = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root; its package makes this user. He cannot enter
        # pytest's folders.
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.dir = Path(tempfile.mkdtemp(prefix="signer-postgres-"))
        try:
            os.chown(self.dir, self._user.pw_uid, self._user.pw_gid)
            self._initialise()
            self.start()
            self._administer(sql.SQL("CREATE ROLE signer LOGIN PASSWORD {}").format(self.password))
        except BaseException:
            self.close()
            raise

    def database(self) -> str:
        """Makes an empty database, owned by a user of no other rights, and returns its URL."""
        name = f"test_{next(self._numbers)}"
        self._administer(sql.SQL("CREATE DATABASE {} OWNER signer").format(sql.Identifier(name)))
        url = sa.URL.create(
            "postgresql+psycopg",
            "signer",
            self.password,
            database=name,
            query={"host": str(self.dir)},
        )
        return url.render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Removes a database, whoever uses it: each has some megabytes."""
        name = sql.Identifier(sa.make_url(url).database or "")
        self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def start(self) -> None:
        """Starts the server and returns when it answers."""
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        command: list[str | Path] = ["postgres", "-D", self.dir / "data", "-k", self.dir, *settings]
        with (self.dir / "log").open("ab") as log:
            self._server = self._popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._administer(sql.SQL("SELECT 1"))
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.dir / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Ends the server and every connection at once; ``start`` brings all data back."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)  # its "fast shutdown"
            self._server.wait(SECONDS)
            self._server = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within it there is no server."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within it the server takes connections, and answers nothing."""
        assert self._server is not None
        server = psutil.Process(self._server.pid)
        server.suspend()  # first: it begins no process after this
        processes = [server, *server.children(recursive=True)]
        for process in processes[1:]:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(processes):
                process.resume()

    def disconnect(self, url: str) -> None:
        """Ends every connection to a database."""
        self._administer(
            sql.SQL(
                "SELECT pg_terminate_backend(pid, {}) FROM pg_stat_activity WHERE datname = {}"
            ).format(SECONDS * 1000, sa.make_url(url).database)
        )

    def close(self) -> None:
        """Ends the server for good."""
        self.stop()
        shutil.rmtree(self.dir)

    def _initialise(self) -> None:
        secret = self.dir / "password"
        secret.write_text(self.password)
        os.chown(secret, self._user.pw_uid, self._user.pw_gid)
        command: list[str | Path] = [
            "initdb",
            "-D",
            self.dir / "data",
            "-U",
            "postgres",
            "--pwfile",
            secret,
        ]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        command += ["--locale-provider=icu", "--icu-locale=en-US"]
        made = self._popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = made.communicate(timeout=SECONDS)
        if made.returncode:
            raise RuntimeError(output.decode())

    def _popen(self, command: list[str | Path], **streams: Any) -> subprocess.Popen[bytes]:
        """Runs one of the programs as the server's user, beyond the reach of a Ctrl-C."""
        program, *arguments = command
        user: dict[str, Any] = {
            "user": self._user.pw_uid,
            "group": self._user.pw_gid,
            "extra_groups": [],
        }
        made: subprocess.Popen[bytes] = subprocess.Popen(
            [self._programs / program, *arguments],
            cwd=self.dir,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            **(user if os.geteuid() == 0 else {}),
            **streams,
        )
        return made

    def _administer(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(
            host=str(self.dir),
            dbname="postgres",
            user="postgres",
            password=self.password,
            connect_timeout=SECONDS,
            autocommit=True,
        ) as connection:
            connection.execute(statement)
