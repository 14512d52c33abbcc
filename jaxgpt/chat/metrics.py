"""Counts of a server, in the text form of Prometheus."""

from __future__ import annotations

import bisect
from collections import Counter

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Histogram:
    """How many observations were at most each of `BOUNDS`, and their sum."""

    def __init__(self):
        self.counts, self.sum = [0] * (len(BOUNDS) + 1), 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> list[str]:
        """As Prometheus reads them: cumulative."""
        total, lines = 0, []
        for bound, count in zip((*BOUNDS, "+Inf"), self.counts):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """What a server has done.

    Attributes:
      requests: {(path, status): how many}.
      prompt_tokens, completion_tokens: how many were read and written.
      disconnects: requests whose client left before the answer was whole.
      seconds, first_token: histograms of whole answers, and of the wait for their first token.
    """

    def __init__(self):
        self.requests: Counter = Counter()
        self.prompt_tokens = self.completion_tokens = self.disconnects = 0
        self.seconds, self.first_token = Histogram(), Histogram()

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The page that Prometheus reads; `gauges` are {name: (what it is, value now)}."""
        lines = _head("requests_total", "Requests that were answered.", "counter")
        lines += [f'jaxgpt_requests_total{{path="{path}",status="{status}"}} {count}'
                  for (path, status), count in sorted(self.requests.items())]
        for name, what in (("prompt_tokens", "Tokens of prompts."), ("completion_tokens", "Tokens that were written."),
                           ("disconnects", "Requests whose client left early.")):
            lines += [*_head(f"{name}_total", what, "counter"), f"jaxgpt_{name}_total {getattr(self, name)}"]
        for name, (what, value) in gauges.items():
            lines += [*_head(name, what, "gauge"), f"jaxgpt_{name} {value}"]
        for name, what, histogram in (("request_seconds", "From a request to its whole answer.", self.seconds),
                                      ("first_token_seconds", "From a request to its first token.", self.first_token)):
            lines += [*_head(name, what, "histogram"), *histogram.lines(f"jaxgpt_{name}")]
        return "\n".join([*lines, ""])


def _head(name: str, what: str, kind: str) -> list[str]:
    return [f"# HELP jaxgpt_{name} {what}", f"# TYPE jaxgpt_{name} {kind}"]
