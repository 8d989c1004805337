"""Section and line on what quantisation changed: distributions, spikes, operations a token."""

from __future__ import annotations

from typing import Any

from qslm_edge.report.document import Section, table, text
from qslm_edge.report.figures import clean, count, error, megabytes, number

__all__ = ["statistics_line", "statistics_section"]

TITLE = "Statistics against the float model"
_ABSENT = "Not computed: the setting was given, or the report is older than these figures."
_LAYER_COLUMNS = ("layer", "part", "flips", "drift", "firing, float", "firing, quantised", "zeros of relu²")
_FREE = (
    "Both models run freely, so that a spike that flips in one layer reaches the next. None of these figures is a "
    "limit. Membrane drift is the mean absolute difference of the potential before the reset, in units of the "
    "threshold."
)
_CONVENTIONS = (
    "Operations of matrix products for one token, by NeuroBench's names. As built is the honest convention: only "
    "inputs that are -1, 0 or 1 make accumulates (ACs), and the matrices of SpikeGPT read floats. Spike-driven takes "
    "the residual stream for the spikes added to it last, as papers on spiking transformers do (a reconstruction); no "
    "device can compute the model so. Effective operations leave zeros out; onnxruntime computes the dense ones."
)


def statistics_section(report: dict[str, Any]) -> Section:
    """Figures of the chosen setting beside those of the float model."""
    found = _statistics(report["search"])
    if found is None:
        return Section(TITLE, (text(_ABSENT),))
    return Section(
        TITLE,
        (
            text(f"The first {_scope(found)}, {count(found['n_tokens'])} tokens. {_FREE}"),
            table(("figure", "value", "remark"), [*_divergence(found), *_spikes(found)], right=(1,)),
            text(_CONVENTIONS),
            table(("a token", "float", "quantised"), _operations(found), right=(1, 2)),
            table(_LAYER_COLUMNS, _layers(found), right=(2, 3, 4, 5, 6)),
        ),
    )


def statistics_line(found: dict[str, Any] | None) -> str:
    """The same for a terminal, in one line.

    Args:
        found: `statistics` of search.json or of a report's search; None where there are none.
    """
    if found is None:
        return f"{TITLE}: {_ABSENT}"
    divergence, spikes = found["divergence"], found["spikes"]
    before, after = (
        _millions(found["operations"][side]["as_built"]["effective_macs"]) for side in ("float", "quantised")
    )
    kl = f"KL {number(divergence['kl_mean_nats'], 3)} nats"
    if divergence["kl_p99_nats"] is not None:
        kl += f" (p99 {number(divergence['kl_p99_nats'], 3)})"
    parts = (
        kl,
        f"same top answer {_percent(divergence['top1_agreement'])}",
        f"spikes flipped {_percent(spikes['flip_rate'])}",
        f"firing rate {_percent(spikes['firing_rate_float'])} → {_percent(spikes['firing_rate'])}",
        f"effective MACs a token {before} → {after}",
    )
    return clean(f"Against float, first {_scope(found)}: {'; '.join(parts)}")


def _statistics(search: dict[str, Any] | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None if search is None else search.get("statistics")
    return found


def _scope(found: dict[str, Any]) -> str:
    return f"{count(found['n_items'])} of {count(found['n_items_total'])} search items"


def _divergence(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    divergence = found["divergence"]
    compared = divergence["comparison"]
    return [
        (
            "KL divergence, mean",
            number(divergence["kl_mean_nats"], 4, "nats"),
            f"KL(float ‖ quantised) of {count(divergence['n_predictions'])} predictions",
        ),
        ("KL divergence, median", number(divergence["kl_p50_nats"], 4, "nats"), ""),
        (
            "KL divergence, p99",
            number(divergence["kl_p99_nats"], 4, "nats", reason=divergence["kl_p99_reason"]),
            f"largest {number(divergence['kl_max_nats'], 3, 'nats')}",
        ),
        ("same top answer", _percent(divergence["top1_agreement"]), "share of predictions"),
        ("RMS Δp", _percent(divergence["rms_delta_p"]), "change of the right answer's probability"),
        (
            "ΔNLL",
            error(compared["delta_nll"], compared["delta_nll_se"], 4),
            "nats a prediction, ± paired standard error",
        ),
    ]


def _spikes(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    spikes = found["spikes"]
    rates = (
        f"firing rate {_percent(spikes['firing_rate_float'])} float, {_percent(spikes['firing_rate'])} now"
    )
    return [
        ("spike decisions that differ", _percent(spikes["flip_rate"]), rates),
        ("membrane drift", number(spikes["membrane_drift"], 4), "in units of the threshold"),
    ]


def _operations(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    sides = [found["operations"][side] for side in ("float", "quantised")]

    def row(name: str, *path: str, form: Any = count) -> tuple[str, str, str]:
        values = []
        for side in sides:
            value: Any = side
            for key in path:
                value = value[key]
            values.append(form(value))
        return name, values[0], values[1]

    return [
        row("Dense", "dense"),
        row("Effective_MACs, as built", "as_built", "effective_macs"),
        row("Effective_ACs, as built", "as_built", "effective_acs"),
        row("Effective_MACs, spike-driven", "spike_driven", "effective_macs"),
        row("Effective_ACs, spike-driven", "spike_driven", "effective_acs"),
        row("membrane updates", "membrane_updates"),
        row("activation sparsity", "activation_sparsity", form=_percent),
        row("connection sparsity", "connection_sparsity", form=_percent),
        row("footprint (packed weights)", "footprint_bytes", form=megabytes),
    ]


def _layers(found: dict[str, Any]) -> list[tuple[str, ...]]:
    quantised = found["operations"]["quantised"]["activation_sparsity_by_layer"]
    hidden = {entry["layer"]: _percent(entry["ffn_hidden"]) for entry in quantised}
    return [
        (
            str(entry["layer"]),
            entry["part"],
            _percent(entry["flip_rate"]),
            number(entry["membrane_drift"], 3),
            _percent(entry["firing_rate_float"]),
            _percent(entry["firing_rate"]),
            hidden.get(entry["layer"], "") if entry["part"] == "ffn" else "",
        )
        for entry in found["spikes"]["layers"]
    ]


def _percent(share: float | None) -> str:
    return number(None if share is None else 100 * share, 2, "%")


def _millions(value: float | None) -> str:
    return number(None if value is None else value / 1e6, 2, "M")
