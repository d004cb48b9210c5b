"""Whether a difference in loss grows or shrinks with the model: what `switchyard sweep` found at several sizes, a straight
line in the logarithm of the parameters through it, and how far that line can be trusted."""

import functools
import json
import math
from dataclasses import dataclass

from console import UserError

LEVEL = 0.95


@functools.cache  # a band asks for the same one at each of its points
def t_quantile(p, freedom):
    """Where Student's distribution of so many degrees of freedom reaches p, 0.5 <= p < 1; to some 1e-5 of itself."""
    peak = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def below(t):
        # With t = sqrt(freedom) tan(a) the density is peak sqrt(freedom) cos(a)^(freedom - 1): smooth on a bounded range.
        end, n = math.atan(t / math.sqrt(freedom)), 200
        values = [math.cos(end * i / n) ** (freedom - 1) for i in range(n + 1)]
        simpson = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
        return 0.5 + peak * math.sqrt(freedom) * simpson * end / n / 3

    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return low


@dataclass
class Trend:
    """Of one router against another: the difference in loss of each size and seed, and a line through all of them."""
    name: str
    points: list  # [(parameters, difference)], a pair of runs each, sizes ascending

    def sizes(self):
        return sorted({size for size, _ in self.points})

    def at_size(self, size):
        return [y for x, y in self.points if x == size]

    def fitted(self):
        """Whether there is a line with an uncertainty: two sizes, and a pair of runs more than a line has numbers."""
        return len(self.sizes()) >= 2 and len(self.points) >= 3

    def at(self, size):
        """(the line there, half the width of its 95 percent band): ordinary least squares, all pairs weighing the same."""
        n, xs = len(self.points), [math.log(x) for x, _ in self.points]
        x_mean, y_mean = sum(xs) / n, sum(y for _, y in self.points) / n
        spread = sum((x - x_mean) ** 2 for x in xs)
        slope = sum((x - x_mean) * (y - y_mean) for x, (_, y) in zip(xs, self.points)) / spread
        left = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, (_, y) in zip(xs, self.points))
        off = math.log(size) - x_mean
        error = math.sqrt(left / (n - 2) * (1 / n + off * off / spread))
        return y_mean + slope * off, t_quantile((1 + LEVEL) / 2, n - 2) * error


def load_trends(path):
    """[Trend] of a sweep whose variants are called SIZE and SIZE_ROUTER, each compared with SIZE."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in table["variants"]}
        points = {}
        for name, row in rows.items():
            against = row.get("against") or {}
            base = against.get("name")
            if base and name.startswith(base + "_") and against.get("loss_difference"):
                size = rows[base]["parameters"]["total"]
                points.setdefault(name[len(base) + 1:], []).extend((size, y) for y in against["loss_difference"]["each"])
    except (UnicodeDecodeError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no table of a sweep; 'switchyard sweep SPEC --table' writes sweep.json") from None
    trends = [Trend(name, sorted(pairs)) for name, pairs in points.items()]
    if not any(len(trend.sizes()) > 1 for trend in trends):
        raise UserError(f"{path}: has no router at two sizes; call variants SIZE and SIZE_ROUTER, the second with \"against\": "
                        "SIZE, as configs/sweeps/lpr_scale.json does")
    return trends
