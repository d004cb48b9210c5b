"""The figures and tables of one or several runs, as SVG and HTML text. report.py puts them on a page, dashboard.py shows
them live."""

import html
import math
from dataclasses import dataclass

from run_metrics import is_number, specialisation_bits
from svg_chart import WIDE, Panel, Series, heat_maps, line_chart, percent, short, thinned

TOKENS = "tokens trained on"
HEAT_COLUMNS = 120


@dataclass
class Figure:
    key: str          # names the file of --png and the anchor on the page
    title: str
    caption: str
    svg: str = None   # None: there is nothing to draw, and the caption says why


def loss_figure(runs):
    series, one = [], len(runs) == 1
    for color, run in enumerate(runs):
        points, band = thinned(run.series("loss"))
        validated = [(v.tokens, v.loss) for v in run.validations]
        series.append(Series("training" if one else run.name, points, color, "line" if one else "thin",
                             band if one else None, in_legend=one or not validated))
        series.append(Series("validation" if one else run.name, validated, color + one, "dots"))
    values = [y for s in series for _, y in s.points]
    if values:  # the first steps fall from ln(vocabulary): a scale that holds them hides all that follows
        late = [y for s in series for x, y in s.points if x >= 0.03 * max(x for s in series for x, _ in s.points)]
        top = max(late or values)
        low = min(values)
        top = min(max(values), top + 0.25 * (top - low))
    else:
        low = top = None
    svg = line_chart("Loss", series, TOKENS, "loss, nats a token", width=WIDE, height=380, high=top)
    return Figure("loss", "Loss", "Mean cross entropy: lines in training, points on the validation data, or on what "
                  "eval_tokens allows of it. The first steps may lie above the frame.", svg)


def mean_and_layers(runs, key):
    """A line a run; with one run also a thin one for each layer, and what validations counted as points."""
    series = []
    for color, run in enumerate(runs):
        if len(runs) == 1:
            for index in range(len(run.layer_numbers())):
                points = [(line["tokens"], layers[index].figures[key]) for line, layers in zip(run.steps, run.layers)
                          if index < len(layers) and is_number(layers[index].figures.get(key))]
                series.append(Series("each layer" if index == 0 else "", thinned(points)[0], 7, "thin"))
        points = run.series(key) if run.layer_numbers() else []
        one = len(runs) == 1
        series.append(Series("mean over layers" if one else run.name, thinned(points)[0], color))
        validated = [(v.tokens, v.balance[key]) for v in run.validations
                     if run.layer_numbers() and is_number(v.balance.get(key))]
        series.append(Series("validation" if one else run.name, validated, color + one, "dots", in_legend=one))
    return series


def gini_figure(runs):
    svg = line_chart("Gini coefficient of expert load", mean_and_layers(runs, "gini"), TOKENS, "Gini", low=0)
    return Figure("gini", "Gini coefficient", "0: all experts take alike; near 1: one takes all. Lines: moving average of the "
                  "counts in training (0.99 a step). Points: exact, over the validation data.", svg)


def min_max_figure(runs):
    series = mean_and_layers(runs, "min_max")
    svg = line_chart("Load of the idlest expert over the busiest", series, TOKENS, "min / max", log=True, floor=1e-8, high=1)
    return Figure("min-max", "Min-max ratio", "Load of the idlest expert as a share of the busiest one's, on a logarithmic "
                  "scale; 1 is perfect balance. An expert that gets nothing (0) lies on the lower edge.", svg)


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
        panels.append(Panel(f"layer {number}", rows, expert_labels(n_experts),
                            [(0, "0"), (0.5, short(edges[-1] / 2)), (1, short(edges[-1]))]))
    svg = heat_maps(f"Expert load over time, {run.name}", panels, TOKENS, "expert", "load / mean",
                    panel_height=190 if panels and len(panels[0].rows) > 24 else 130)
    caption = ("Each expert's share of a layer's slots over training, as a multiple of an even share: grey is balance, blue "
               "idle, red overloaded.")
    if not panels:
        caption = "This run has no expert counts: its model is dense."
    return Figure(f"load-{index}", f"Expert load: {run.name}", caption, svg)


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
            return f"the validation at step {validation.step}", layers
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
               "information of expert and domain, 0 where experts know no domain. Dark grey: an expert without a token.")
    if not panels:
        caption = ("No counts by domain: they come with each evaluation of a run whose data.validation names two domains "
                   "or more.")
    return Figure(f"domains-{index}", f"Specialisation: {run.name}", caption, svg)


def specialisation_figure(runs):
    series = []
    for color, run in enumerate(runs):
        points = []
        for validation in run.validations:
            bits = [layer["specialisation"] for layer in validation.layers
                    if is_number(layer.get("specialisation")) and len(layer.get("counts_by_domain", {})) > 1]
            if bits:
                points.append((validation.tokens, sum(bits) / len(bits)))
        series.append(Series(run.name, points, color, "dots"))
    svg = line_chart("Specialisation over time", series, TOKENS, "bits, mean over layers", low=0)
    return Figure("specialisation", "Specialisation over time",
                  "Mutual information of expert and domain at each validation." if svg else
                  "No validation has counts by domain.", svg)


def experts_per_token_figure(runs):
    series = [Series(run.name, thinned(run.experts_per_token())[0], color) for color, run in enumerate(runs)]
    values = [y for s in series for _, y in s.points]
    svg = line_chart("Experts per token", series, TOKENS, "slots a token", low=0,
                     high=1.1 * max(values) if values else None)
    return Figure("experts-per-token", "Experts per token",
                  "Routed slots that a token had, mean over layers: constant for a fixed top-K, less where slots were dropped "
                  "or left free." if svg else "No expert counts: dense models have none.", svg)


def flops_figure(runs):
    series = [Series(run.name, thinned(run.saved_share())[0], color) for color, run in enumerate(runs)]
    values = [y for s in series for _, y in s.points]
    svg = line_chart("FLOPs saved", series, TOKENS, "share of the static model's FLOPs", y_format=percent,
                     low=min([0.0] + values), high=max([0.05] + [1.1 * v for v in values]))
    return Figure("flops-saved", "FLOPs saved",
                  "Per token, counted from the real decisions, against every token using all of its slots." if svg else
                  "These runs' metrics have no flops_per_token.", svg)


OTHERS = [
    ("tokens_per_second", "Speed", "tokens a second", {"low": 0}),
    ("grad_norm", "Gradient norm, before clipping", "L2 norm", {"log": True, "floor": 1e-6}),
    ("lr", "Learning rate", "learning rate", {"low": 0}),
    ("balance_loss", "Balance loss", "nats, coefficient included", {}),
    ("z_loss", "z-loss", "nats, coefficient included", {}),
    ("router_loss", "The routers' own losses", "nats, coefficient included", {}),
    ("drop_rate", "Slots dropped for capacity", "share of slots", {"low": 0, "y_format": percent}),
]


def other_figures(runs):
    """What has values other than 0, in small."""
    figures = []
    for key, title, label, options in OTHERS:
        if not any(value for run in runs for _, value in run.series(key)):
            continue
        series = [Series(run.name if len(runs) > 1 else "", thinned(run.series(key))[0], color)
                  for color, run in enumerate(runs)]
        svg = line_chart(title, series, TOKENS, label, height=260, **options)
        figures.append(Figure(key.replace("_", "-"), title, "", svg))
    return figures


def sections(runs):
    """[(heading, [Figure])] of everything."""
    return [
        ("Loss", [loss_figure(runs)]),
        ("Balance", [gini_figure(runs), min_max_figure(runs)]),
        ("Expert load over time", [load_figure(run, i) for i, run in enumerate(runs)]),
        ("Specialisation by domain", [specialisation_figure(runs)] + [domains_figure(run, i)
                                                                      for i, run in enumerate(runs)]),
        ("Work per token", [experts_per_token_figure(runs), flops_figure(runs)]),
        ("The run itself", other_figures(runs)),
    ]


# ---- tables ----

def cell(value, form=".4f"):
    return f"{value:{form}}" if is_number(value) else "–"


def min_max_cell(value):
    return "–" if not is_number(value) else f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2e}"


def summary_rows(runs):
    """The table of a run's end: header, then [cells] a run."""
    header = ["run", "model", "steps", "tokens", "test loss", "Gini", "min-max", "experts a token", "FLOPs saved", "judged on"]
    rows = []
    for run in runs:
        final, last = run.final(), run.steps[-1]
        routed = bool(run.layer_numbers())
        slots, saved = run.experts_per_token(), run.final_saved_share()
        judged = final["from"] + (f", {final['tokens']:,} tokens" if is_number(final["tokens"]) else "")
        rows.append([run.name, run.label or "–", f"{last['step']:,}", short(last["tokens"]), cell(final["loss"]),
                     cell(final["gini"], ".3f") if routed else "–", min_max_cell(final["min_max"]) if routed else "–",
                     cell(slots[-1][1], ".2f") if slots else "–",
                     percent(saved) if saved is not None else "–", judged])
    return header, rows


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


def html_table(header, rows, numbers_from=2):
    def row(tag, cells):
        return "<tr>" + "".join(
            f"<{tag}{' class=number' if numbers_from <= i < len(header) else ''}>{html.escape(str(c))}</{tag}>"
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
