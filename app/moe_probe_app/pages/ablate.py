"""Ablate: switch experts of a layer off, and see which tokens suffer, in the text and label by label."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import streamlit as st

from moe_probe.charts.effects import effect_bars
from moe_probe.tokenview import router_titles
from moe_probe_app import components, library, selection, settings
from moe_probe_app.components import ablation, changes, figure, plain, sidebar, toggles, waiting
from moe_probe_app.components.ablation import Carrier, Change, How, Opened, Result, Source, Task
from moe_probe_app.components.desk import PRECISIONS, Quantization
from moe_probe_app.components.download import csv_button
from moe_probe_app.components.sidebar import Chosen

STYLE = Path(components.__file__).parent / "ablate.css"
TEXT_LIMIT = 100_000
DEFAULT_TOKENS = 3_000
MOST_TOKENS = 1_000_000
DEFAULT_LEAST = 10
EXAMPLE = (
    "The quick brown fox jumps over the lazy dog, and 12 geese fly south before the first snow.\n"
    "In 1887 the old lighthouse was sold for 240 pounds, and nobody knew why."
)
PASTE, RUN = "Paste a text", "Documents of the run"
HELD: dict[Quantization, str] = {held: name.lower() for name, held in PRECISIONS.items()}
HOW: dict[How, str] = {"ablate": "Switch off, nothing instead", "reroute": "Reroute to the next best"}
VERBS: dict[How, str] = {"ablate": "Switch off", "reroute": "Reroute"}
CARRIED: dict[Carrier, str] = {"predicted": "the token foretold", "routed": "the token before it"}
CARRIED_HELP = (
    "What is switched off acts while a token passes through the model; what changes is how well the token after it is "
    "foretold. Tell tokens apart by the kind of the one or the other."
)
OPENING, OPENED, MEASURING, RESULT = "ablate_opening", "ablate_opened", "ablate_measuring", "ablate_result"
LAYER, EXPERTS = "ablate_layer", "ablate_experts"
TABLE_COLUMNS = {
    "label": "label",
    "verdict": "verdict",
    "n": "tokens",
    "mean_bits": "change",
    "difference": "more than others",
    "difference_ci_low": "from",
    "difference_ci_high": "to",
    "random_difference": "random control",
    "over_random": "over random",
    "over_random_ci_low": "over random, from",
    "over_matched": "over like experts",
    "over_matched_ci_low": "over like experts, from",
    "matched_experts": "like experts",
    "q_value": "q",
}
TABLE_HELP = {
    "mean_bits": "Mean change of surprisal in bits: without the experts, less with them.",
    "difference": "The change less the mean change of all other tokens; with its 95 % interval.",
    "random_difference": "The same when as many assignments are dropped at random.",
    "over_random": "More than others, less the random control.",
    "over_matched": "More than others, less the same of experts of half to twice the load, each switched off alone.",
    "matched_experts": "How many other experts of the layer have half to twice the load.",
    "q_value": "Of exceeding the random control, corrected for all labels.",
}


def run_source(chosen: Chosen) -> Source | None:
    """Ask which documents of the run to read, or say why its model cannot."""
    run, name = chosen.run, chosen.selection.run
    model = run.manifest.get("model", {})
    if model.get("name") not in settings.models():
        plain.callout(
            "info",
            f"The model of this run is not at hand: {model.get('name', 'unknown')}",
            "Start the explorer with it, or paste a text and use another model.",
            f"moe-probe explore {settings.current().root} --model {model.get('name', 'MODEL')}",
        )
        return None
    documents = library.document_names(run)
    held = next((one for one in HELD if one == model.get("quantization")), None)
    with st.form("ablate_run", border=False):
        left, right = st.columns([3, 1], vertical_alignment="bottom")
        picked = left.multiselect(
            "Documents",
            range(len(documents)),
            format_func=documents.__getitem__,
            placeholder=f"All {len(documents)} documents of {name}",
            key="ablate_documents",
        )
        tokens = right.number_input(
            "Tokens at most",
            min_value=50,
            max_value=MOST_TOKENS,
            value=DEFAULT_TOKENS,
            step=500,
            key="ablate_tokens",
            help="About evenly from each document, from its beginning.",
        )
        plain.note(f"Read by {model['name']}, experts in {HELD[held]}, as the run was traced.")
        if not st.form_submit_button("Open the text", type="primary", key="ablate_open_run"):
            return None
    labels = list(dict.fromkeys([*(one.name for one in run.labels), "shape"]))
    numbers = run.documents()["document"].to_list()
    return Source(
        model["name"],
        held,
        tuple(label for label in labels if label != "phase"),
        run=name,
        path=run.path,
        numbers=tuple(numbers[place] for place in picked),
        max_tokens=int(tokens),
        fingerprint=model.get("fingerprint"),
    )


def pasted_source() -> Source | None:
    """Ask for a text, a model and a precision."""
    models = settings.models()
    with st.form("ablate_pasted", border=False):
        text = st.text_area("Text", EXAMPLE, height=150, max_chars=TEXT_LIMIT, key="ablate_text")
        left, middle, right = st.columns([2, 2, 2], vertical_alignment="bottom")
        model = left.selectbox("Model", range(len(models)), format_func=models.__getitem__, key="ablate_model")
        precision = middle.selectbox("Precision of the experts", list(PRECISIONS), key="ablate_precision")
        english = right.checkbox("Tag English words", value=True, key="ablate_english")
        if not st.form_submit_button("Open the text", type="primary", key="ablate_open"):
            return None
    if not text.strip():
        plain.callout("warning", "There is no text", "Type or paste some, then press Open the text.")
        return None
    labels = ablation.ENGLISH if english else ablation.ANY_LANGUAGE
    return Source(models[model or 0], PRECISIONS[precision or "4 bits"], labels, text=text, english=english)


def choose_text(chosen: Chosen | None) -> None:
    """Ask for a text and the model that is to read it, and open it."""
    origin = PASTE
    if chosen is not None:
        origin = st.radio("Text", [PASTE, RUN], horizontal=True, key="ablate_origin", persist_state="session")
    source = run_source(chosen) if chosen is not None and origin == RUN else pasted_source()
    if source is not None:
        st.session_state[OPENING] = ablation.open_text(source)
        st.rerun()


def said_of(opened: Opened) -> str:
    """Return what is open, in a line."""
    source = opened.source
    count = len(opened.documents)
    text = "a pasted text" if source.run is None else f"{count} document{'s'[: count != 1]} of {source.run}"
    return f"{text} · {opened.cost.n_tokens:,} tokens · {source.model}, experts in {HELD[source.quantization]}"


def mirror(opened: Opened, chosen: Chosen | None) -> bool:
    """Take layer and experts from the selection where the text is the selected run's; say whether it is."""
    offered = [router.index for router in opened.routers]
    mirrored = chosen is not None and chosen.selection.run == opened.source.run
    if chosen is not None and mirrored:
        if chosen.selection.router in offered:
            st.session_state[LAYER] = chosen.selection.router
        st.session_state[EXPERTS] = list(chosen.selection.focus)
    if st.session_state.get(LAYER) not in offered:
        st.session_state[LAYER] = offered[0]
    return mirrored


def choose_change(opened: Opened, chosen: Chosen | None) -> None:
    """Ask which experts to switch off and how, say how long it takes, and begin."""
    if not opened.routers:
        plain.callout("info", "No layer to choose", "No layer of this model has exactly one router. Open another one.")
        return
    mirrored = mirror(opened, chosen)
    routers = {router.index: router for router in opened.routers}
    titles = dict(zip(routers, router_titles(opened.routers), strict=True))
    with st.container(key="ablate_choices"):
        first, second, third, fourth = st.columns([2, 3, 2, 3], vertical_alignment="bottom")
    index = first.selectbox(
        "Layer",
        list(routers),
        format_func=titles.__getitem__,
        key=LAYER,
        persist_state="session",
        on_change=lambda: selection.change(router=st.session_state[LAYER]) if mirrored else None,
    )
    router = routers[index]
    st.session_state[EXPERTS] = [one for one in st.session_state.get(EXPERTS, []) if one < router.n_experts]
    how = second.selectbox("How", list(HOW), format_func=HOW.__getitem__, key="ablate_how", persist_state="session")
    label = third.selectbox("Labels", opened.source.labels, key="ablate_label")
    carried = fourth.selectbox(
        "Labels of", list(CARRIED), format_func=CARRIED.__getitem__, key="ablate_carried", help=CARRIED_HELP
    )
    experts = toggles.expert_toggles(
        f"Experts of layer {router.layer}",
        router.n_experts,
        key=EXPERTS,
        on_change=lambda: selection.change(focus=tuple(st.session_state[EXPERTS])) if mirrored else None,
        help="Those that are pressed are switched off together.",
    )
    verb = f"{VERBS[how]} expert{'s'[: len(experts) != 1]}"
    with st.container(horizontal=True, vertical_alignment="center"):
        begin = st.button(
            f"{verb} {', '.join(map(str, experts)) or '…'}", type="primary", disabled=not experts, key="ablate_begin"
        )
        plain.note(
            f"Takes about {opened.cost.text(router, len(experts))}: {opened.cost.n_tokens:,} tokens, with the experts, "
            "without them, and with each control."
            if experts
            else "Press the experts to switch off."
        )
    if begin:
        st.session_state[MEASURING] = ablation.measure(opened, Change(router, experts, how, label, carried))
        st.rerun()


def draw_result(result: Result) -> None:
    """Show the text beside the labels, and the numbers."""
    change = result.change
    done = "was rerouted" if change.how == "reroute" else "was switched off"
    done = done if len(change.experts) == 1 else done.replace("was", "were")
    plain.section(f"What changed when {result.experts} of layer {change.router.layer} {done}", said_of(result.opened))
    if result.stopped:
        plain.callout("warning", "Stopped", "What is shown was measured on the part that was done by then.")
    if not result.opened.same_model:
        plain.callout(
            "warning",
            "Not the very model of the run",
            "The model that was loaded has other weights, another precision or another device than the run was traced "
            "with. The numbers are of the model that was loaded.",
        )
    if result.sentence:
        plain.callout("info", "In words", result.sentence)
    if result.this_text_only:
        plain.callout(
            "warning",
            "This text only",
            "With fewer than 5 documents nothing can be said about other texts, and intervals are over parts of these.",
        )
    with st.container(key="ablate_result"):
        left, right = st.columns(2, gap="large")
        with left:
            draw_text(result)
        with right:
            draw_bars(result)
    if result.table is not None:
        draw_table(result, result.table)


def draw_text(result: Result) -> None:
    """Show a document with each token's change."""
    plain.section(
        "Which tokens are foretold worse?",
        "Change of each token's surprisal: without the experts, less with them. Baseline: 0, no change.",
    )
    names = result.tokens["document"].unique(maintain_order=True).to_list()
    st.session_state.setdefault("ablate_shown", names.index(result.most_changed))
    if len(names) > 1:
        st.selectbox("Document", range(len(names)), format_func=names.__getitem__, key="ablate_shown")
    shown = names[st.session_state["ablate_shown"]]
    changes.show(
        result.tokens.filter(document=shown), label=result.change.label, bound=result.bound, key="ablate_changes"
    )
    csv_button(result.tokens, "token_changes")


def draw_bars(result: Result) -> None:
    """Show the labels' changes beside the random control."""
    if result.table is None:
        plain.callout("info", "No labels yet", "It was stopped before the first batch was measured for each label.")
        return
    reached = max(result.table["n"].to_list(), default=0)
    least = st.session_state.setdefault("ablate_least", DEFAULT_LEAST if reached >= DEFAULT_LEAST else 1)
    drawn = result.table.filter(pl.col("n") >= least)
    if drawn.is_empty():
        plain.callout("info", "No label has so many tokens", f"The commonest has {reached:,}. Ask for fewer.")
    else:
        figure.show(effect_bars(drawn, " ".join(map(str, result.change.experts))), "ablate_bars")
    st.number_input("Tokens a label at least", min_value=1, max_value=MOST_TOKENS, key="ablate_least", width=220)


def draw_table(result: Result, table: pl.DataFrame) -> None:
    """Show the labels' numbers with both controls."""
    plain.section(
        "The same in numbers",
        f"Bits a token, labels of {CARRIED[result.change.carried_by]}. Controls: as many assignments dropped at "
        "random, and each other expert of half to twice the load switched off by itself.",
    )
    numbers = {
        name: st.column_config.NumberColumn(title, format="%.3f", help=TABLE_HELP.get(name))
        for name, title in TABLE_COLUMNS.items()
    }
    counts = {
        name: st.column_config.NumberColumn(TABLE_COLUMNS[name], format="localized", help=TABLE_HELP.get(name))
        for name in ("n", "matched_experts")
    }
    words = {name: st.column_config.TextColumn(TABLE_COLUMNS[name]) for name in ("label", "verdict")}
    st.dataframe(
        table.select(list(TABLE_COLUMNS)).sort("difference", descending=True, nulls_last=True),
        hide_index=True,
        key="ablate_table",
        placeholder="–",
        column_config=numbers | counts | words,
    )
    csv_button(table, "effect")


def finish_opening(task: Task[Opened]) -> None:
    """Take over a text that was opened, or say why it was not."""
    del st.session_state[OPENING]
    problem = task.problem()
    if problem is not None and task.cancel.is_set():
        plain.callout("info", "Stopped", "The text was not opened.")
        return
    if problem is not None:
        plain.callout("error", "The text could not be opened", problem)
        return
    st.session_state[OPENED] = task.answer()
    for key in (RESULT, LAYER, EXPERTS, "ablate_label", "ablate_shown", "ablate_least"):
        st.session_state.pop(key, None)


def finish_measuring(task: Task[Result]) -> None:
    """Take over what was measured, or say why nothing was."""
    del st.session_state[MEASURING]
    problem = task.problem()
    if problem is None:
        st.session_state[RESULT] = task.answer()
        for key in ("ablate_shown", "ablate_least"):
            st.session_state.pop(key, None)
    elif task.cancel.is_set():
        plain.callout("info", "Stopped", "Nothing was measured.")
    else:
        plain.callout("error", "Nothing could be measured", problem)


chosen = sidebar.choose() if library.run_names(settings.current().root) else None
plain.heading("Ablate", "Switch experts of a layer off, and see which tokens the model then foretells worse.")
st.html(STYLE)
opening: Task[Opened] | None = st.session_state.get(OPENING)
if opening is not None and opening.done:
    finish_opening(opening)
    opening = None
measuring: Task[Result] | None = st.session_state.get(MEASURING)
if measuring is not None and measuring.done:
    finish_measuring(measuring)
    measuring = None

opened: Opened | None = st.session_state.get(OPENED)
if opening is not None:
    waiting.watch(opening, "ablate_stop_opening")
elif measuring is not None:
    waiting.watch(measuring, "ablate_stop")
elif opened is None:
    choose_text(chosen)
else:
    with st.expander(f"Text: {said_of(opened)}", key="ablate_text_and_model"):
        choose_text(chosen)
    choose_change(opened, chosen)
result: Result | None = st.session_state.get(RESULT)
if result is not None and opening is None and measuring is None:
    draw_result(result)
