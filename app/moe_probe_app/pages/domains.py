"""Domains: whether texts of different kinds go to different experts, and where neighbours share one."""

from __future__ import annotations

import polars as pl
import streamlit as st

from moe_probe.charts.domains import ALL, divergence_matrix, domain_shares, repetition_by_domain
from moe_probe.charts.neighbours import repetition_lines
from moe_probe_app import library, selection
from moe_probe_app.components import figure, plain, sidebar
from moe_probe_app.components.download import csv_button
from moe_probe_app.components.sidebar import Chosen

THIS, THREE = "The chosen layer", "First, middle and last, as in the Mixtral paper"
MEASURES = {"first_choice": "Same first choice", "either": "Any expert in common"}


def panels(chosen: Chosen, which: str | None) -> list[int]:
    """Return the routers to draw: the chosen one, or the first, the middle and the last."""
    every = [router.index for router in chosen.run.routers]
    return [every[0], every[(len(every) - 1) // 2], every[-1]] if which == THREE else [chosen.selection.router]


def say_what_is_missing(chosen: Chosen) -> None:
    """Say why there is nothing to compare and what to do; stop the page where there is not."""
    run = chosen.run
    known = run.documents()["domain"].drop_nulls().unique()
    if known.is_empty():
        plain.callout(
            "info",
            "This run has no domains",
            "A domain is the kind of text that a document is. Put the texts into a folder with a sub-folder for each "
            "kind (or give JSONL and CSV rows a column domain), and trace them again:",
            f"moe-probe trace {run.manifest.get('model', {}).get('name', 'MODEL')} my_texts/ --out {run.path}-domains",
        )
        st.stop()
    if len(known) == 1:
        plain.callout(
            "info",
            f"This run has one domain: {known[0]}",
            "There is no other one to compare it with. Trace texts of several kinds, each kind in a sub-folder.",
        )
        st.stop()
    if "domain" not in [label_set.name for label_set in run.labels]:
        plain.callout(
            "warning",
            "The tokens are not labelled with their domain",
            "Shares and repetition are below; for the divergence, and to filter the text, add the label:",
            f"moe-probe label {run.path} --with domain",
        )


def show_shares(chosen: Chosen) -> None:
    """Show each expert's share of each domain; a click goes to the text."""
    which = st.radio("Layers", [THIS, THREE], horizontal=True, key="domains_layers", persist_state="session")
    table = library.affinity(chosen.run)
    bar = figure.clicked(
        lambda: domain_shares(table, panels(chosen, which), focus=chosen.selection.focus),
        f"domains_shares_{which == THREE}",
    )
    csv_button(table, "affinity")
    if bar:
        router, expert, domain = bar["customdata"][-3:]
        now = chosen.selection
        selection.change(
            router=int(router),
            focus=(int(expert),),
            document=library.document_with(chosen.run, "domain", str(domain), now.document),
            label="domain",
            value=str(domain),
            token=None,
        )
        st.switch_page("text.py")


def show_divergence(chosen: Chosen) -> None:
    """Show how far apart domains lie in the chosen layer."""
    table = library.divergence(chosen.run)
    figure.show(divergence_matrix(table, chosen.selection.router), "domains_matrix")
    with st.expander("The same in numbers", key="domains_pairs"):
        here = table.filter(pl.col("router") == chosen.selection.router)
        st.dataframe(
            here.select(
                "value",
                "other_value",
                "js_bits",
                "null_mean_bits",
                "excess_bits",
                "excess_ci_low",
                "excess_ci_high",
                "q_value",
                "clusters",
                "cluster_unit",
                "n",
            ).sort("excess_bits", descending=True, nulls_last=True),
            hide_index=True,
            key="domains_divergence",
            column_config={
                "value": st.column_config.TextColumn("domain"),
                "other_value": st.column_config.TextColumn("and domain"),
                "js_bits": st.column_config.NumberColumn("bits", format="%.3f"),
                "null_mean_bits": st.column_config.NumberColumn("by chance", format="%.3f"),
                "excess_bits": st.column_config.NumberColumn("excess", format="%.3f"),
                "excess_ci_low": st.column_config.NumberColumn("from", format="%.3f", help="95 % interval of excess."),
                "excess_ci_high": st.column_config.NumberColumn("to", format="%.3f", help="95 % interval of excess."),
                "q_value": st.column_config.NumberColumn(
                    "q", format="%.3f", help="Corrected for all pairs and layers."
                ),
                "clusters": st.column_config.NumberColumn("draws", help="Of the domain that has fewer of them."),
                "cluster_unit": st.column_config.TextColumn("of", help="document; block: 256 tokens of a document."),
                "n": st.column_config.NumberColumn("n", format="localized"),
            },
        )
    csv_button(table, "divergence")


def show_repetition(chosen: Chosen) -> None:
    """Show where neighbours share an expert: by domain in the chosen layer, and over layers in one domain."""
    table = library.repetition(chosen.run)
    measure = (
        st.radio(
            "Neighbours with",
            list(MEASURES),
            format_func=MEASURES.__getitem__,
            horizontal=True,
            key="domains_measure",
            persist_state="session",
        )
        or "first_choice"
    )
    figure.show(repetition_by_domain(table, chosen.selection.router, measure=measure), "domains_repetition")
    with st.expander("The same in numbers", key="domains_chances"):
        show_repetition_table(table.filter(pl.col("router") == chosen.selection.router), measure)
    csv_button(table, "repetition")
    names = table["domain"].unique(maintain_order=True).to_list()
    domain = st.selectbox(
        "Over layers, in",
        range(len(names)),
        format_func=lambda place: "all documents" if names[place] == ALL else names[place],
        key="domains_domain",
        width=320,
    )
    figure.show(repetition_lines(table, names[domain or 0], measure=measure), "domains_repetition_lines")


def show_repetition_table(here: pl.DataFrame, measure: str) -> None:
    """Show the numbers of one layer: a row a domain, as Mixtral's Table 5, and the excess over the last chance."""
    end = "first" if measure == "first_choice" else "either"
    columns = {
        measure: "observed",
        f"{end}_ci_low": "from",
        f"{end}_ci_high": "to",
        f"uniform_{end}": "even routing",
        f"load_{end}": "of a domain",
        f"document_{end}": "of a document",
        f"token_{end}": "same tokens",
    }
    excess = {"excess_first": "excess", "excess_ci_low": "excess, from", "excess_ci_high": "excess, to"}
    columns |= excess if end == "first" else {}
    st.dataframe(
        here.select("domain", *columns, "pairs", "n_token_pairs"),
        hide_index=True,
        key="domains_repetition_table",
        column_config={
            **{name: st.column_config.NumberColumn(title, format="percent") for name, title in columns.items()},
            "pairs": st.column_config.NumberColumn("pairs", format="localized"),
            "n_token_pairs": st.column_config.NumberColumn("pairs of same tokens", format="localized"),
        },
    )


chosen = sidebar.choose()
counts_only = chosen.run.counts_only
lead = "Do texts of different kinds go to different experts?"
plain.heading("Domains", lead if counts_only else f"{lead} Click a bar to see it in the text.")
say_what_is_missing(chosen)
if counts_only:
    plain.callout(
        "info",
        "This run holds counts only",
        "How far apart the domains lie is below. Shares and repetition need tokens: trace again without --counts-only.",
    )
else:
    show_shares(chosen)
if "domain" in [label_set.name for label_set in chosen.run.labels]:
    show_divergence(chosen)
if not counts_only:
    show_repetition(chosen)
