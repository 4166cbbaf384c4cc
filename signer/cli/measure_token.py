"""``signer token bench``: the figures of the customer's own HSM, in one table."""

import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from signer.algorithms import RSA_BITS, Algorithm
from signer.cli.options import config_option, token_option
from signer.cli.output import output, say
from signer.cli.progress import progress
from signer.config.models import load_config
from signer.text import count
from signer.tools.token_bench import Plan, measure, measure_failover, shared_version

_BAR = 24  # columns of the longest bar


def _numbers(_: object, __: object, text: str) -> list[int]:
    """Reads "1,2,4"; raises BadParameter."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= 64 for number in numbers):
        raise click.BadParameter(f'"{text}": write numbers from 1 to 64, as in 1,2,4,8')
    return numbers


def _show(found: dict[str, Any]) -> None:
    for line in table(found):
        say(line)


@click.command(short_help="Measures what a token does, and with how many sessions.")
@config_option
@token_option
@click.option(
    "--sessions",
    metavar="N,N,...",
    default="1,2,4,8",
    show_default=True,
    callback=_numbers,
    help="How many sessions sign at once, each in a process of its own.",
)
@click.option(
    "--algorithm",
    type=click.Choice([each.value for each in Algorithm], case_sensitive=False),
    default=Algorithm.ES256.value,
    show_default=True,
    help="What they sign with.",
)
@click.option(
    "--bits",
    type=click.Choice([str(bits) for bits in sorted(RSA_BITS)], case_sensitive=False),
    default=str(min(RSA_BITS)),
    show_default=True,
    help="Length of an RSA key.",
)
@click.option(
    "--seconds",
    metavar="N",
    type=click.FloatRange(0.1, 600),
    default=3.0,
    show_default=True,
    help="How long each measurement takes.",
)
@click.option(
    "--failover",
    is_flag=True,
    help="Also kill the workers of one token after the other, where two hold the same key.",
)
@output(lambda found: found, _show)
def bench(
    *,
    config_file: Path,
    token: str,
    sessions: list[int],
    algorithm: str,
    bits: str,
    seconds: float,
    failover: bool,
) -> dict[str, Any]:
    """Measures how fast a token is, and with how many sessions it is fastest.

    Measures signatures per second by the number of sessions (each in a worker
    process, as in the daemon), a search for a key by its CKA_ID, an unwrap if the
    module wraps keys with AES, and the login. All keys are session objects: nothing
    is left on the token, and none of your keys signs. The PIN is read from the
    token's `pin_file`, and tried by one session before the others open.

    A daemon that uses the token at the same time shares it with the bench: measure
    an idle token, or one in daily use to see how much capacity is left.

    \b
    How many workers does the HSM need?
      signer token bench --config /etc/signer/signer.yaml --sessions 1,2,4,8,16,32

    \b
    RSA, on one of two tokens, quickly:
      signer token bench --config /etc/signer/signer.yaml --token hsm-1 \\
        --algorithm PS256 --bits 3072 --sessions 4 --seconds 1

    \b
    For an acceptance test: at least 1500 signatures a second?
      signer token bench --config /etc/signer/signer.yaml --json |
        jq -e '[.sessions[].rate] | max >= 1500'

    \b
    What callers notice if one of two HSMs is lost: signs canaries, which are
    thrown away, with a key that both hold, and kills its own workers:
      signer token bench --config /etc/signer/signer.yaml --token hsm-1 --failover
    """
    config = load_config(config_file)
    chosen, wanted = config.token(token), Algorithm(algorithm)
    rsa = wanted in (Algorithm.RS256, Algorithm.PS256)
    version = shared_version(config) if failover else None
    if failover and version is None:
        raise click.UsageError(
            "--failover needs a key that signs and that two of the configured tokens hold:"
            " `signer operations propose add-placement` names the second one"
        )

    def line(_done: int, _of: int | None, doing: str) -> str:
        return doing

    with progress("measuring", line=line) as advance:
        plan = Plan(wanted, int(bits) if rsa else 0, sessions, seconds)
        found = measure(chosen, config.state, plan, advance)
        found["failover"] = version and measure_failover(config, version, seconds, advance)
    return found


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the table, of at most 80 columns."""
    token, rows = found["token"], found["sessions"]
    bits = f"-{found['bits']}" if found["bits"] else ""
    yield f"token {token['label']}: {token['manufacturer']} {token['model']}"[:80]
    yield f"module {token['library']} {token['library_version']}"[:80]
    yield ""
    yield f"{found['algorithm']}{bits}: signatures a second, and milliseconds of one"
    yield f"{'sessions':>8} {'rate/s':>9} {'p50':>8} {'p99':>8}"
    best = max(row["rate"] for row in rows)
    for row in rows:
        bar = "#" * max(1, round(_BAR * row["rate"] / best))
        mark = "  < enough" if row["sessions"] == found["knee"] else ""
        yield (
            f"{row['sessions']:>8} {row['rate']:>9.0f} {row['p50_ms']:>8.2f}"
            f" {row['p99_ms']:>8.2f}  {bar}{mark}"
        )
    if found["stopped"]:
        yield from textwrap.wrap(found["stopped"], 80)
    yield ""
    yield from itertools.chain(_others(found), _failover(found["failover"]))
    yield ""
    yield f"`workers: {found['knee']}` reaches nine tenths of the best rate that was measured."


def _others(found: dict[str, Any]) -> Iterator[str]:
    look_up, unwrap, login = found["look_up"], found["unwrap"], found["login"]
    present = "the token has none" if look_up["found_ms"] is None else _ms(look_up["found_ms"])
    yield f"search for a CKA_ID: of a key {present}, of none {_ms(look_up['missing_ms'])}"
    if unwrap is None:
        yield "unwrap: the module has no AES key wrap with padding"
    else:
        yield f"unwrap of a P-256 key: {_ms(unwrap['unwrap_ms'])} by {unwrap['mechanism']}"
    yield f"login: {_ms(login['login_ms'])}; to open the token {_ms(login['open_ms'])}"


def _failover(failover: dict[str, Any] | None) -> Iterator[str]:
    for lost in failover["lost"] if failover else ():
        back = lost["back_seconds"]
        yield (
            f"token {lost['token']} lost: {count(lost['failed'], 'call')} failed, the longest took"
            f" {_ms(lost['longest_ms'])}"
        )
        again = "not within the time" if back is None else f"after {back:.1f} s"
        yield f"  (99 of 100 take {_ms(lost['usual_ms'])} before it); it served again {again}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2f} ms"
