"""The outcome of a load test: the reports of all processes are merged, judged, printed and written."""

import logging
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from loadtest.core.balance import Balance
from loadtest.core.capacity import Certificate
from loadtest.core.generator import GeneratorLoad
from loadtest.core.summary import latency_table, ledger_table
from loadtest.core.verdict import Measured, RequestStats, judge, parse_condition
from loadtest.locust.options import generator_limits
from loadtest.locust.run import DELIVER, ProcessReport

logger = logging.getLogger(__name__)


class Outcome:
    """The merged reports and their verdict. As a string, it is what is printed at the end."""

    def __init__(
        self,
        reports: Iterable[ProcessReport],
        exceptions: int,
        missing: int,
        given_up: bool,
        options: Namespace,
        certificate: Certificate | None = None,
    ) -> None:
        """`exceptions` is how many users had, `missing` how many workers did not report."""
        self.certificate = certificate
        self.balance = Balance([])
        self.rows: defaultdict[str, RequestStats] = defaultdict(RequestStats)
        load, seconds = GeneratorLoad(), 0.0
        self._unanswered = self._online_then = 0
        for report in reports:
            self.balance += Balance.decode(report["ledger"])
            load = load.worst(GeneratorLoad(report["cpu"], report["lag_p99"]))
            seconds = max(seconds, report["seconds"])
            self._unanswered += report["unanswered"]
            self._online_then += report["online"]
            for name, row in report["rows"].items():
                self.rows[name].count += row["count"]
                self.rows[name].failures += row["failures"]
                self.rows[name].histogram.add(row["histogram"])
        counts = self.balance.totals() | {"exceptions": exceptions, "missing_reports": missing}
        counts["given_up"] = int(given_up)
        counts["requests"] = sum(row.count for row in self.rows.values())
        if certificate:  # it contains only rates that the generator could keep up with
            counts["capacity"] = round(certificate.best.rate) if certificate.best else 0
            load = certificate.best.load if certificate.best else GeneratorLoad()
        self.verdict = judge(
            map(parse_condition, options.fail_if),
            Measured(self.rows, counts, load, seconds),
            generator_limits(options),
        )

    def __str__(self) -> str:
        parts = [latency_table(self.rows), ledger_table(self.balance), self.verdict.table()]
        if self.certificate:
            parts.insert(0, str(self.certificate))
        if self._unanswered:
            parts.append(
                f"{self._unanswered} logins got no answer, with {self._online_then} of these users online: all places "
                "of the server may have been taken.\nStart it with more (--pool-size), or run fewer users (-u)."
            )
        return "\n\n".join(parts)

    def write(self, options: Namespace) -> bool:
        """Write the files of --histogram and --ledger. Logs the first one that cannot be written, and returns False."""
        try:
            if options.histogram:
                self.rows[DELIVER].histogram.write(Path(options.histogram))
            if options.ledger:
                self.balance.write(Path(options.ledger))
        except OSError as error:
            logger.error("cannot write %s: %s", error.filename, error.strerror)
            return False
        return True
