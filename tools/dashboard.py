"""Shows runs while they go on: the figures of report.py, drawn anew every few seconds.

    pip install -r tools/requirements-dashboard.txt
    streamlit run tools/dashboard.py                       every run in runs/, those of sweeps, too
    streamlit run tools/dashboard.py -- runs/a runs/b      these
"""

import sys
from pathlib import Path

import streamlit as st

import figures
import svg_chart
from run_metrics import AXES, load_runs, number

INTERVALS = {"2 s": 2, "5 s": 5, "15 s": 15, "60 s": 60, "never": None}


def known_runs():
    """What the command line names, or what is in runs/; the newest first."""
    named = [Path(path) for path in sys.argv[1:]]
    found = named or [path.parent for depth in ("*", "*/*") for path in Path("runs").glob(f"{depth}/metrics.jsonl")]

    def age(path):
        metrics = path / "metrics.jsonl" if path.is_dir() else path
        return -metrics.stat().st_mtime if metrics.exists() else 0.0
    return [str(path) for path in (found if named else sorted(found, key=age))]


def is_dark():
    theme = getattr(st.context, "theme", None)
    return getattr(theme, "type", None) == "dark"


def show_progress(run):
    last = run.steps[-1]
    columns = st.columns(6)
    columns[0].metric(f"step of {run.total_steps:,}" if run.total_steps else "step", f"{last['step']:,}")
    columns[1].metric("loss", figures.cell(number(last.get("loss"))))
    columns[2].metric("validation loss", figures.cell(run.validations[-1].loss) if run.validations else "–")
    columns[3].metric("Gini", figures.cell(last.get("gini"), ".3f") if run.layer_numbers() else "–")
    columns[4].metric("min-max", figures.min_max_cell(last.get("min_max")) if run.layer_numbers() else "–")
    columns[5].metric("tokens/s", figures.cell(last.get("tokens_per_second"), ",.0f"))
    if run.total_steps:
        st.progress(min(1.0, last["step"] / run.total_steps))


def show(paths, axis, view):
    left_out = []
    runs = load_runs(paths, axis, left_out)
    for reason in left_out:
        st.warning(reason)
    if not runs:
        return
    for run in runs:
        if len(runs) > 1:
            st.subheader(run.name)
        show_progress(run)
        for note in run.notes:
            st.caption(f"{run.name}: {note}")
    header, rows = figures.summary_rows(runs)
    st.dataframe([dict(zip(header, row)) for row in rows], hide_index=True)
    parts = [(heading, members) for heading, members in figures.sections(runs, view) if members]
    for tab, (_, members) in zip(st.tabs([heading for heading, _ in parts]), parts):
        with tab:
            for figure in (figure for figure in members if figure.svg):
                st.markdown(f"**{figure.title}**")
                st.image(svg_chart.standalone(figure.svg, dark=is_dark()))
                st.caption(figure.caption)
            for sentence in figures.missing(members):
                st.caption(sentence)


def main():
    st.set_page_config(page_title="switchyard", layout="wide")
    st.title("switchyard")
    choices = known_runs()
    chosen = st.sidebar.multiselect("runs", choices, default=choices if len(sys.argv) > 1 else choices[:1])
    interval = INTERVALS[st.sidebar.selectbox("draw anew every", list(INTERVALS), index=1)]
    axis = st.sidebar.selectbox("x axis", list(AXES))
    smooth = st.sidebar.slider("smoothing of single steps, 0: none", 0.0, 0.99, 0.9)
    view = figures.View(smooth or None, st.sidebar.checkbox("logarithmic losses"))
    if not chosen:
        st.info("Choose a run in the sidebar." if choices else
                "No runs/*/metrics.jsonl or runs/*/*/metrics.jsonl here: name a run, as in  streamlit run tools/dashboard.py -- RUN")
        return
    st.fragment(show, run_every=interval)(chosen, axis, view)


main()
