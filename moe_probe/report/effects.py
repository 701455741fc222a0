"""What a report says of switching experts off. It does not know how that was measured."""

from __future__ import annotations

import polars as pl

from moe_probe.charts.effects import effect_heatmap
from moe_probe.effects.folder import EffectFolder
from moe_probe.effects.table import MORE_THAN_ANY, MORE_THAN_CONTROLS, effect_table
from moe_probe.measures.verdicts import NOT_ENOUGH
from moe_probe.report.page import Field, figure, table, terms
from moe_probe.report.sections import BASELINE, COUNTED, INTERVAL, NOT_TO_CONCLUDE, Section
from moe_probe.report.told import best
from moe_probe.report.words import between, numbered, range_of

_LISTED = 40
_RANDOM = "As many assignments of each slot dropped at random. "


def effects_section(folder: EffectFolder) -> Section:
    """Whom it hurts when an expert is switched off."""
    title = "Does switching an expert off hurt the tokens that it is chosen for?"
    frame = effect_table(folder, carried_by="routed")
    stands = frame.filter(pl.col("verdict").is_in([MORE_THAN_ANY, MORE_THAN_CONTROLS]))
    tested = frame.filter(pl.col("verdict") != NOT_ENOUGH)
    most_of_all = frame.filter(verdict=MORE_THAN_ANY)
    seen = (
        f"Of {numbered(len(tested), 'pair')} of an expert and a label that could be tested, switching the expert off "
        f"hurts the label more than other tokens, and more than its controls do, in {len(stands):,}; in "
        f"{len(most_of_all):,} more than any other expert of the layer does."
    )
    control = "over_matched" if frame["over_random"].null_count() == len(frame) else "over_random"
    top = best(stands, control)
    if top is not None:
        seen += (
            f" The largest: without expert {top['experts']} of layer {top['layer']} the token after one of the kind "
            f"{top['label']} becomes {top['mean_bits']:.2f} bits{between(top['ci_low'], top['ci_high'])} more "
            "surprising."
        )
    unfinished = "" if folder.complete else " Measuring was stopped before all of the text was done."
    routers = stands["router"].unique().sort().to_list()
    columns = [
        Field("layer"),
        Field("experts", "expert"),
        Field("label"),
        Field("mean_bits", "change, bits, 95 %", "+.2f", ("ci_low", "ci_high")),
        Field(control, "over the control, 95 %", "+.2f", (f"{control}_ci_low", f"{control}_ci_high")),
        Field("verdict"),
        Field("n", "tokens"),
    ]
    return Section(
        title,
        seen + unfinished,
        (
            *(figure(effect_heatmap(frame, router)) for router in routers[:3]),
            table(
                stands.sort(control, descending=True, maintain_order=True),
                columns=columns,
                limit=_LISTED,
                title="Pairs that stand",
                empty="None stands.",
            ),
            terms(
                {
                    BASELINE: f"{_RANDOM if control == 'over_random' else ''}Other experts of half to twice the load.",
                    INTERVAL: "95 %, of paired differences, a document (or a group of them) being one draw.",
                    COUNTED: f"{range_of(frame['n'])} tokens a label, the label being that of the token routed; in "
                    f"all {folder.manifest['tokens']:,} tokens of a text of its own.",
                    NOT_TO_CONCLUDE: "That the model needs the expert for this alone, or would without it had it been "
                    "trained without it.",
                }
            ),
        ),
        f"Cause: in {len(stands):,} of {len(tested):,} pairs switching an expert off hurts its label more than its "
        "controls do.",
    )
