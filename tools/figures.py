"""The figures and tables of one or several runs, as SVG and HTML text. report.py puts them on a page, dashboard.py shows
them live."""

import html
import math
import re
import statistics
from dataclasses import dataclass

from run_metrics import AXES, is_number, specialisation_bits
from svg_chart import WIDE, Panel, Series, finite, heat_maps, line_chart, percent, short, smoothed

HEAT_COLUMNS = 120
UNTRAINED = 16.0  # nats a token: more than chance over nine million tokens; what is above has diverged
DENSE = "No expert counts: dense models have none."
NO_DOMAINS = ("No counts by domain: they come with each evaluation of a run whose data.validation names two domains or "
              "more.")


@dataclass
class Figure:
    key: str          # names the file of --png and the anchor on the page
    title: str
    caption: str
    svg: str = None   # None: there is nothing to draw, and the caption says why


@dataclass
class View:
    """How lines are drawn, the same for every run."""
    smooth: float = 0.9  # weight of the average (svg_chart.smoothed); None: every step as it is
    log: bool = False    # logarithmic scales for losses and for the figures of the run itself


def axis_label(runs):
    return AXES[runs[0].axis][1]


def line_series(run, points, color, view, **options):
    """A line of values of single steps."""
    if view.smooth is None:
        return Series(run.name, points, color, **options)
    return Series(run.name, smoothed(points, view.smooth), color, raw=points, **options)


def validated(run, value_of):
    """[(x, value)] of each validation that has one."""
    points = [(run.at(v.line), value_of(v)) for v in run.validations]
    return [(x, y) for x, y in points if x is not None and y is not None]


def loss_top(lines, dots):
    """The upper end of the scale: it holds each validation and each run's training but for its first steps, which fall from
    ln(vocabulary) and would hide all that follows. What has diverged does not stretch it, unless all has."""
    late = [[y for x, y in finite(points) if x >= points[0][0] + 0.03 * (points[-1][0] - points[0][0])]
            for points in lines]
    kept = [y for values in late if max(values, default=0) <= UNTRAINED for y in values]
    kept += [y for points in dots for _, y in finite(points) if y <= UNTRAINED]
    every = [y for points in lines + dots for _, y in finite(points)]
    if not every:
        return None
    top, low = max(kept or every), min(every)
    return min(max(every), top + 0.25 * (top - low)) + 0.05 * (top - low)


def loss_figure(runs, view):
    one = len(runs) == 1
    lines = [run.series("loss") for run in runs]
    dots = [validated(run, lambda v: v.loss) for run in runs]
    series = []
    for color, (run, points, marked) in enumerate(zip(runs, lines, dots)):
        series.append(line_series(run, points, color, view, in_legend=one or not marked))
        series.append(Series(run.name, marked, color + one, "dots"))
        if one:
            series[-2].label, series[-1].label = "training", "validation"
    svg = line_chart("Loss", series, axis_label(runs), "loss, nats a token", width=WIDE, height=380, log=view.log,
                     high=None if view.log else loss_top(lines, dots))
    return Figure("loss", "Loss", "Mean cross entropy: lines in training, points on the validation data, or on what "
                  "eval_tokens allows of it. " + (f"Lines are smoothed ({view.smooth:g}), fainter ones are single steps. "
                                                  if view.smooth else "")
                  + "What lies beyond the frame is marked at its edge with its value.", svg)


def mean_and_layers(runs, key):
    """A line a run; with one run also a thin one for each layer, and what validations counted as points."""
    series, one = [], len(runs) == 1
    for color, run in enumerate(runs):
        if one:
            for index in range(len(run.layer_numbers())):
                points = [(run.at(line), layers[index].figures[key]) for line, layers in zip(run.steps, run.layers)
                          if index < len(layers) and is_number(layers[index].figures.get(key))
                          and run.at(line) is not None]
                series.append(Series("each layer", points, 7, "thin", in_legend=index == 0))
        points = run.series(key) if run.layer_numbers() else []
        series.append(Series("mean over layers" if one else run.name, points, color))
        marked = validated(run, lambda v: v.balance[key] if run.layer_numbers() and is_number(v.balance.get(key)) else None)
        series.append(Series("validation" if one else run.name, marked, color + one, "dots", in_legend=one))
    return series


def gini_figure(runs):
    svg = line_chart("Gini coefficient of expert load", mean_and_layers(runs, "gini"), axis_label(runs), "Gini", low=0)
    return Figure("gini", "Gini coefficient", "0: all experts take alike; near 1: one takes all. Lines: moving average of the "
                  "counts in training (0.99 a step). Points: exact, over the validation data." if svg else DENSE, svg)


def min_max_figure(runs):
    svg = line_chart("Load of the idlest expert over the busiest", mean_and_layers(runs, "min_max"), axis_label(runs),
                     "min / max", log=True, floor=1e-8, high=1)
    return Figure("min-max", "Min-max ratio", "Load of the idlest expert as a share of the busiest one's, on a logarithmic "
                  "scale; 1 is perfect balance. An expert that gets nothing (0) is marked at the lower edge." if svg else DENSE,
                  svg)


def expert_labels(n_experts):
    stride = max(1, math.ceil(n_experts / 8))
    return [(e, str(e)) for e in range(0, n_experts, stride)]


def load_figure(run, index):
    panels = []
    for i, number in enumerate(run.layer_numbers()):
        edges, table = run.load_over_time(i, HEAT_COLUMNS)
        if not table:
            continue
        n_experts = next((len(column) for column in table if column), 0)
        rows = [[column[e] if column else None for column in table] for e in range(n_experts)]
        middle = len(edges) // 2
        panels.append(Panel(f"layer {number}", rows, expert_labels(n_experts),
                            [(0, short(edges[0])), (middle / (len(edges) - 1), short(edges[middle])), (1, short(edges[-1]))]))
    svg = heat_maps(f"Expert load over time, {run.name}", panels, axis_label([run]), "expert", "load / mean",
                    panel_height=190 if panels and len(panels[0].rows) > 24 else 130)
    caption = ("Each expert's share of a layer's slots over training, as a multiple of an even share: blue is idle, nearly "
               "white balance, red overloaded; grey: the layer had no slot.")
    return Figure(f"load-{index}", f"Expert load: {run.name}", caption if svg else DENSE, svg)


def domain_tables(run):
    """(where from, [(layer, {domain: counts})]) of the latest evaluation that has them."""
    if run.evaluation:
        layers = [(layer["layer"], layer["counts_by_domain"])
                  for layer in run.evaluation.get("balance", {}).get("layers", ())
                  if len(layer.get("counts_by_domain", {})) > 1]
        if layers:
            return "eval.json", layers
    for validation in reversed(run.validations):
        layers = [(layer["layer"], layer["counts_by_domain"]) for layer in validation.layers
                  if len(layer.get("counts_by_domain", {})) > 1]
        if layers:
            return f"the validation at step {validation.line['step']}", layers
    return None, []


def lift_rows(counts_by_domain):
    """[domain][expert]: the expert's share of the domain's slots over its share of all slots."""
    tables = list(counts_by_domain.values())
    total = sum(map(sum, tables))
    expert_share = [sum(column) / total if total else 0 for column in zip(*tables)]
    rows = []
    for counts in tables:
        n_domain = sum(counts)
        rows.append([count / n_domain / share if n_domain and share else None
                     for count, share in zip(counts, expert_share)])
    return rows


def domains_figure(run, index):
    where, layers = domain_tables(run)
    panels = []
    for number, counts_by_domain in layers:
        rows = lift_rows(counts_by_domain)
        bits = specialisation_bits(list(counts_by_domain.values()))
        n_experts = len(rows[0])
        panels.append(Panel(f"layer {number}: {bits:.3f} bits", rows, list(enumerate(counts_by_domain)),
                            [(0, "0"), (1, str(n_experts - 1))]))
    longest = max((len(name) for _, table in layers for name in table), default=4)
    svg = heat_maps(f"Experts by domain, {run.name}", panels, "expert", "", "× even share",
                    panel_height=24 * max((len(p.rows) for p in panels), default=1), row_gutter=16 + 6.4 * longest)
    caption = (f"How much more of a domain's tokens an expert takes than of all tokens, from {where}. Bits: mutual "
               "information of expert and domain, 0 where experts know no domain. Grey: an expert without a token.")
    return Figure(f"domains-{index}", f"Specialisation: {run.name}", caption if svg else NO_DOMAINS, svg)


def mean_specialisation(validation):
    bits = [layer["specialisation"] for layer in validation.layers
            if is_number(layer.get("specialisation")) and len(layer.get("counts_by_domain", {})) > 1]
    return sum(bits) / len(bits) if bits else None


def specialisation_figure(runs):
    series = [Series(run.name, validated(run, mean_specialisation), color, "dots") for color, run in enumerate(runs)]
    svg = line_chart("Specialisation over time", series, axis_label(runs), "bits, mean over layers", low=0)
    return Figure("specialisation", "Specialisation over time",
                  "Mutual information of expert and domain at each validation." if svg else NO_DOMAINS, svg)


def experts_per_token_figure(runs, view):
    series = [line_series(run, run.experts_per_token(), color, view) for color, run in enumerate(runs)]
    values = [y for s in series for _, y in finite(s.raw or s.points)]
    svg = line_chart("Experts per token", series, axis_label(runs), "slots a token", low=0,
                     high=1.1 * max(values) if values else None)
    return Figure("experts-per-token", "Experts per token",
                  "Routed slots that a token had, mean over layers: constant for a fixed top-K, less where slots were dropped "
                  "or left free." if svg else DENSE, svg)


def flops_figure(runs, view):
    series = [line_series(run, run.saved_share(), color, view) for color, run in enumerate(runs)]
    values = [y for s in series for _, y in finite(s.raw or s.points)]
    svg = line_chart("FLOPs saved", series, axis_label(runs), "share of the static model's FLOPs", y_format=percent,
                     low=min([0.0] + values), high=max([0.05] + [1.1 * v for v in values]))
    return Figure("flops-saved", "FLOPs saved",
                  "Per token, counted from the real decisions, against every token using all of its slots." if svg else
                  "These runs' metrics have no flops_per_token.", svg)


def variant_of(run):
    """The name without its seed: runs of one variant share a colour."""
    return re.sub(r"_seed\d+$", "", run.name)


def unbeaten(points):
    """Of points, those that no other is at most as high and as far right as, from left to right; equal ones are one."""
    kept = []
    for x, y in sorted(set(points)):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def trade_off_figure(runs):
    """Loss against balance of every run, where there are several that were judged on the same tokens."""
    finals = [(variant_of(run), run.final()) for run in runs]
    finals = [(name, final) for name, final in finals if is_number(final["loss"]) and is_number(final["gini"])]
    if len(finals) < 2:
        return None
    names = list(dict.fromkeys(name for name, _ in finals))
    points = {name: sorted((final["loss"], final["gini"]) for other, final in finals if other == name) for name in names}
    edge = unbeaten([point for members in points.values() for point in members])
    series = [Series("no other is better in both", edge, 7, "thin")] if len(edge) > 1 else []
    series += [Series(name, members, color, "points") for color, (name, members) in enumerate(points.items())]
    tokens = {final["tokens"] for _, final in finals}
    return Figure("trade-off", "Loss against balance",
                  "A point a run: test loss, or that of the last validation, and the Gini coefficient counted with it. Left and "
                  "low is better; the line goes through the runs that no other beats in both."
                  + (" Not all were judged on the same tokens: their losses do not compare." if len(tokens) > 1 else ""),
                  line_chart("Loss against balance", series, "loss, nats a token", "Gini", low=0))


OTHERS = [
    ("tokens_per_second", "Speed", "tokens a second", {"low": 0}),
    ("grad_norm", "Gradient norm, before clipping", "L2 norm", {"log": True, "floor": 1e-6}),
    ("lr", "Learning rate", "learning rate", {"low": 0}),
    ("balance_loss", "Balance loss", "nats, coefficient included", {}),
    ("z_loss", "z-loss", "nats, coefficient included", {}),
    ("router_loss", "The routers' own losses", "nats, coefficient included", {}),
    ("drop_rate", "Slots dropped for capacity", "share of slots", {"low": 0, "y_format": percent}),
]


def other_figures(runs, view):
    """What has values other than 0, in small."""
    figures, several = [], len(runs) > 1
    for key, title, label, options in OTHERS:
        lines = [run.series(key) for run in runs]
        if not any(y for points in lines for _, y in points):
            continue
        how = View(None) if key == "lr" else view  # a schedule is no noise
        series = [line_series(run, points, color, how, in_legend=several)
                  for color, (run, points) in enumerate(zip(runs, lines))]
        if view.log:
            options = {**options, "low": None, "log": True}
        svg = line_chart(title, series, axis_label(runs), label, height=260, **options)
        figures.append(Figure(key.replace("_", "-"), title, "", svg))
    return figures


def rank_lines(name, lines, view):
    """A line for each of several ranks or layers."""
    series = []
    for color, points in enumerate(lines):
        label = f"{name} {color}"
        series.append(Series(label, points if view.smooth is None else smoothed(points, view.smooth), color))
    return series


def rank_figures(run, index, view):
    """What ranks waited, and how evenly experts load them; nothing of a run on one rank."""
    waits, loads = run.waits_by_rank(), run.loads_by_layer()
    figures = []
    if waits:
        svg = line_chart(f"{run.name}: time that ranks wait", rank_lines("rank", waits, view), AXES[run.axis][1],
                         "share of the step", low=0, y_format=percent)
        figures.append(Figure(f"waits-{index}", f"{run.name}: time that ranks wait",
                              "A rank waits when it has nothing to copy until another comes: the one that waits least is the "
                              "one that the others wait for.", svg))
    if loads:
        svg = line_chart(f"{run.name}: load of the busiest rank", rank_lines("layer", loads, view), AXES[run.axis][1],
                         "rows over the mean", low=1)
        figures.append(Figure(f"rank-load-{index}", f"{run.name}: load of the busiest rank",
                              "Rows of the rank whose experts got most, over the mean of the ranks that share them.", svg))
    return figures


def sections(runs, view=View()):
    """[(heading, [Figure])] of everything."""
    ranks = [figure for i, run in enumerate(runs) for figure in rank_figures(run, i, view)]
    return [
        ("Loss", [loss_figure(runs, view)]),
        ("Balance", [figure for figure in (gini_figure(runs), min_max_figure(runs), trade_off_figure(runs)) if figure]),
        ("Expert load over time", [load_figure(run, i) for i, run in enumerate(runs)]),
        ("Specialisation by domain", [specialisation_figure(runs)] + [domains_figure(run, i)
                                                                      for i, run in enumerate(runs)]),
        ("Work per token", [experts_per_token_figure(runs, view), flops_figure(runs, view)]),
        ("The run itself", other_figures(runs, view)),
        *([("Ranks", ranks)] if ranks else []),
    ]


def plan_front(plan):
    """The layouts that fit and that no other beats in memory and speed, least memory first."""
    at = {(each["peak"], -each["step"]["tokens_per_second_per_device"]): each for each in reversed(plan["layouts"]) if each["fits"]}
    return [at[place] for place in unbeaten(at)]


def plan_figure(plan, index):
    """Speed against memory of the layouts of `switchyard plan --search --json`, and those that no other beats in both."""
    layouts = plan["layouts"]
    places = [(each["peak"] * 1e-9, each["step"]["tokens_per_second_per_device"]) for each in layouts]
    fits = sorted(place for place, each in zip(places, layouts) if each["fits"])
    beyond = sorted(place for place, each in zip(places, layouts) if not each["fits"])
    front = [(each["peak"] * 1e-9, each["step"]["tokens_per_second_per_device"]) for each in plan_front(plan)]
    series = [Series("fits", fits, 0, "points"), Series("does not fit", beyond, 7, "points"),
              Series("none is faster with as little memory", front, 1)]
    device, asked = plan["device"], plan["layout"]
    svg = line_chart("Layouts", series, "GB of the rank that needs most", "tokens a second and device", width=WIDE, height=380, low=0)
    return Figure(f"plan-{index}", f"Layouts on {asked['ranks']} x {device['name']}",
                  f"{len(layouts)} layouts of {asked['global_batch']} sequences of {asked['seq_len']} tokens a step, in "
                  f"{asked['precision']}, as planned; {device['memory'] * 1e-9:.0f} GB of memory.", svg)


def plan_rows(plan):
    """The layouts on the line of plan_figure, least memory first."""
    rows = [[f"{each['peak'] * 1e-9:.1f}", f"{each['step']['tokens_per_second_per_device']:,.0f}", percent(each["step"]["mfu"]),
             each["step"]["bottleneck"],
             *(str(each["layout"][key]) for key in ("expert", "zero", "tensor", "pipeline", "context", "micro_batch", "recompute"))]
            for each in plan_front(plan)]
    return (["GB", "tokens/s", "MFU", "bottleneck", "expert", "zero", "tensor", "pipeline", "context", "micro-batch", "recompute"],
            rows)


PUBLISHED_SIZE = 0.6e9  # parameters of the models that Latent Prototype Routing was published with


def trend_figure(trends, index, y_label="difference in loss, nats a token"):
    """Differences in loss by size, and where their straight lines lead, with the band that holds these."""
    sizes = sorted({size for trend in trends for size in trend.sizes()})
    furthest = max(PUBLISHED_SIZE, sizes[-1])
    steps = [sizes[0] * (furthest / sizes[0]) ** (i / 60) for i in range(61)]
    series = [Series("no difference", [(sizes[0], 0.0), (furthest, 0.0)], 7, "thin", in_legend=False)]
    for color, trend in enumerate(trends):
        series.append(Series(trend.name, trend.points, color, "points"))
        if trend.fitted():
            line = [(size, *trend.at(size)) for size in steps]
            series.append(Series(trend.name, [(x, y) for x, y, _ in line], color, in_legend=False))
            for side in (1, -1):
                series.append(Series(trend.name, [(x, y + side * half) for x, y, half in line], color, "thin", in_legend=False))
    # The bands may be far wider than what was measured, which has to stay legible.
    seen = [y for trend in trends for _, y in trend.points] + [trend.at(furthest)[0] for trend in trends if trend.fitted()] + [0.0]
    air = 0.6 * (max(seen) - min(seen)) or 0.01
    svg = line_chart("Difference by size", series, "parameters", y_label, width=WIDE, height=420, low=min(seen) - air,
                     high=max(seen) + air, x_log=True, y_format=lambda value: f"{value:+.3g}" if value else "0")
    return Figure(f"trend-{index}", "Difference in loss by size",
                  "A point a pair of runs of the same seed, below zero where the router is better than the one it is compared with. "
                  "Thick: the straight line in the logarithm of the parameters; thin: where it lies with 95 percent, if "
                  f"differences do follow such a line. To {short(furthest)} parameters that is assumed, not measured.", svg)


def trend_rows(trends):
    """(header, rows): each router at each size, then where its line leads."""
    def number(value):
        return f"{value:+.4f}"
    rows = []
    for trend in trends:
        for size in trend.sizes():
            pairs = trend.at_size(size)
            error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
            rows.append([trend.name, f"{size:,}", str(len(pairs)), number(statistics.mean(pairs))
                         + ("" if error is None else f" ± {error:.4f}"), " ".join(map(number, pairs))])
        if trend.fitted() and PUBLISHED_SIZE > trend.sizes()[-1]:
            line, half = trend.at(PUBLISHED_SIZE)
            rows.append([trend.name, f"{PUBLISHED_SIZE:,.0f}, extrapolated", "", number(line),
                         f"95 %: {number(line - half)} to {number(line + half)}"])
    return ["router", "parameters", "seeds", "difference in loss", "each seed"], rows


def missing(members):
    """One sentence for each reason why figures have nothing to draw: ["titles: reason"]."""
    titles = {}
    for figure in members:
        if not figure.svg:
            titles.setdefault(figure.caption, []).append(figure.title)
    return [f"{', '.join(names)}: {reason[0].lower()}{reason[1:]}" for reason, names in titles.items()]


# ---- tables ----

def cell(value, form=".4f"):
    if not is_number(value):
        return "–" if value is None else "not finite"
    return f"{value:{form}}" if abs(value) < 1e7 else f"{value:.3g}"


def min_max_cell(value):
    return "–" if not is_number(value) else f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2e}"


def summary_values(run):
    """What the table says of a run's end, by name; None: nothing is known."""
    final, last = run.final(), run.steps[-1]
    routed, slots = bool(run.layer_numbers()), run.experts_per_token()
    judged = final["from"] + (f", {final['tokens']:,} tokens" if is_number(final["tokens"]) else "")
    return {"run": run.name, "model": run.label, "steps": last["step"], "tokens": last["tokens"], "test loss": final["loss"],
            "Gini": final["gini"] if routed else None, "min-max": final["min_max"] if routed else None,
            "experts a token": slots[-1][1] if slots else None, "FLOPs saved": run.final_saved_share(), "judged on": judged}


def summary_rows(runs):
    """The table of a run's end: header, then [cells] a run."""
    form = {"model": lambda label: label or "–", "steps": "{:,}".format, "tokens": short, "test loss": cell,
            "Gini": lambda value: cell(value, ".3f"), "min-max": min_max_cell,
            "experts a token": lambda value: cell(value, ".2f"),
            "FLOPs saved": lambda value: "–" if value is None else percent(value)}
    tables = [summary_values(run) for run in runs]
    return list(tables[0]), [[form.get(name, str)(value) for name, value in table.items()] for table in tables]


FLOP_PARTS = ("attention", "router", "experts", "always")


def flop_table(run):
    """(header, rows) of the forward FLOPs a token by layer, from eval.json; None where it has none."""
    flops = (run.evaluation or {}).get("flops", {})
    if not flops.get("layers"):
        return None
    rows = []
    for layer in flops["layers"]:
        parts = [layer.get(part) or 0.0 for part in FLOP_PARTS]
        static = layer.get("static") or 0.0
        rows.append([f"layer {layer.get('layer')}", *map(short, parts), short(sum(parts)), short(static),
                     percent(1 - sum(parts) / static) if static else "–"])
    rows.append(["head", "", "", "", "", short(flops.get("head") or 0.0), short(flops.get("head") or 0.0), ""])
    rows.append(["all", "", "", "", "", short(flops.get("per_token") or 0.0), short(flops.get("per_token_static") or 0.0),
                 percent(flops.get("saved") or 0.0)])
    return ["", *FLOP_PARTS, "sum", "static model", "saved"], rows


def html_table(header, rows, numbers_from=2, numbers_to=None):
    def row(tag, cells):
        return "<tr>" + "".join(
            f"<{tag}{' class=number' if i in range(len(header))[numbers_from:numbers_to] else ''}>{html.escape(str(c))}</{tag}>"
            for i, c in enumerate(cells)) + "</tr>"
    return ("<div class=wide><table><thead>" + row("th", header) + "</thead><tbody>"
            + "".join(row("td", cells) for cells in rows) + "</tbody></table></div>")


def markdown_table(header, rows):
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (header, ["---"] * len(header), *rows)) + "\n"


def domain_count_tables(run):
    """[(title, header, rows)]: experts x domains counts of each layer."""
    where, layers = domain_tables(run)
    tables = []
    for number, counts_by_domain in layers:
        header = ["expert"] + list(counts_by_domain) + ["all"]
        rows = [[e, *(f"{count:,}" for count in counts), f"{sum(counts):,}"]
                for e, counts in enumerate(zip(*counts_by_domain.values()))]
        tables.append((f"layer {number}, slots, from {where}", header, rows))
    return tables
