"""Judging tuned settings: a search asks for a setting, and its model is tuned before it is scored.

Each tuned model is kept beside the journal under a name that depends on all that it was made from, so that a killed
search goes on in the middle of a tuning, and an export finds the model of the chosen setting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qslm_edge.errors import OutputError
from qslm_edge.items import Items
from qslm_edge.metrics import Scores
from qslm_edge.quantize.levels import Setting
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Evaluator, Stop
from qslm_edge.search.journal import Journal
from qslm_edge.search.trial import Judge
from qslm_edge.spikegpt.recurrence import stepwise_reason
from qslm_edge.tuning.options import TuneOptions
from qslm_edge.tuning.stored import TunedModel, load_tuned, save_tuned
from qslm_edge.tuning.tuner import tune, tuning_mark

__all__ = ["REMAINS", "SCALE", "TunedJudge", "tuned_path"]

REMAINS = {"language_model": {"emb": 0.45, "att": 1.3, "ffn": 0.3, "head": 0.45}, "classification": {}}
"""What tuning leaves of the predicted cost of a matrix at 2 bits, by part of the model. Solved from tuned settings of
the reference model and their search items: small matrices of attention gain nothing, large ones most."""
SCALE = {"language_model": 1.65, "classification": 6.0}
"""What a tuned setting really loses (its bound) against that sum, until the first evaluation says better."""
FOLDER = "tuned"


def tuned_path(run: Path, mark: str) -> Path:
    """Where a run directory keeps the tuned model with this fingerprint."""
    return run / FOLDER / f"{mark[:16]}.safetensors"


class TunedJudge(Judge):
    """A judge that tunes.

    Args:
        evaluator: of the float model.
        reference, constraints, journal, early, on_work: as of `Judge`.
        items: of the train split.
        options: how to tune.
        digest: of the float model.
        folder: run directory that keeps tuned models; None keeps them in memory alone.
        stage, advance: progress.
    """

    purpose = "tuned"

    def __init__(
        self,
        evaluator: Evaluator,
        reference: Scores,
        constraints: Constraints,
        journal: Journal,
        *,
        items: Items,
        options: TuneOptions,
        digest: str,
        folder: Path | None = None,
        stage: Callable[[str, float], None] = lambda _title, _total: None,
        advance: Callable[[float, str], None] = lambda _share, _text: None,
        early: bool = True,
        on_work: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(evaluator, reference, constraints, journal, early=early, on_work=on_work)
        self.items, self.options, self.digest = items, options, digest
        self.folder = folder
        self._stage, self._advance = stage, advance
        self._models: dict[str, TunedModel] = {}
        self.tuned_tokens = 0
        """Training tokens seen in this process."""

    def model(self, setting: Setting) -> TunedModel:
        """The tuned model of a setting: one of before, the one on disk, or tuned now."""
        key = self._key(setting)
        found = self._models.get(key) or self._on_disk(key) or self._tune(setting, key)
        if self.folder is not None:
            self._models.clear()  # the others are on disk
        self._models[key] = found
        return found

    def _key(self, setting: Setting) -> str:
        return tuning_mark(self.evaluator.store, setting, self.items, self.options, self.digest)

    def _evaluate(self, setting: Setting, stop: Stop | None) -> Scores:
        store = self.model(setting).store(self.evaluator.store)
        evaluator = Evaluator(store, self.evaluator.items, reuse=False)
        evaluator.cost = self.evaluator.cost
        return evaluator.evaluate(setting, stop, on_batch=self.on_work)

    def _on_disk(self, key: str) -> TunedModel | None:
        path = None if self.folder is None else tuned_path(self.folder, key)
        if path is None or not path.exists():
            return None
        found = load_tuned(path, self.evaluator.store, self.digest)
        return found if found.origin.get("mark") == key else None

    def _tune(self, setting: Setting, key: str) -> TunedModel:
        path = None if self.folder is None else tuned_path(self.folder, key)
        state = None if path is None else path.with_suffix(".state.safetensors")
        if path is not None:
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise OutputError("cannot be made", where=path.parent, found=error.strerror) from None
        device = self.evaluator.store.model.device
        why = stepwise_reason(device) if device.type == "cuda" else None
        self._stage(f"tuning {setting.describe()}" + (f" slowly ({why})" if why else ""), 1.0)
        done = tune(
            self.evaluator.store,
            setting,
            self.items,
            self.options,
            model_digest=self.digest,
            state=state,
            advance=self._advance,
        )
        self.tuned_tokens += done.tokens
        origin: dict[str, Any] = {"mark": key, "options": self.options.to_dict(), **done.to_dict()}
        found = TunedModel(setting, done.tensors, done.packed, origin)
        if path is not None and state is not None:
            save_tuned(path, found, self.digest)
            state.unlink(missing_ok=True)
        return found
