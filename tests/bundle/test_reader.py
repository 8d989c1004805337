"""A bundle is taken only when it is whole; everything else is one line with exit code 2."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qslm_edge.bundle import reader
from qslm_edge.bundle.reader import Bundle, open_bundle
from qslm_edge.bundle.writer import save_arrays
from qslm_edge.errors import BundleError, DataError
from qslm_edge.items import Items
from tests.helpers.bundle_fixtures import CopyBundle
from tests.helpers.bundles import edit_manifest


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def refused(path: Path, match: str) -> BundleError:
    with pytest.raises(BundleError, match=match) as caught:
        open_bundle(path)
    line = caught.value.line()
    assert "\n" not in line
    assert caught.value.exit_code == 2
    assert len(line) < 1000
    return caught.value


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return edit


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return edit


def every_path(value: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [before]
    return [before, *(path for key, inner in value.items() for path in every_path(inner, (*before, key)))]


REQUIRED = [path for path in every_path(reader._REQUIRED) if path and path != ("schema",)]


def test_whole_bundles_open(lm_bundle: Bundle, classifier_bundle: Bundle) -> None:
    for bundle in (lm_bundle, classifier_bundle):
        assert open_bundle(bundle.path).manifest == bundle.manifest
        assert open_bundle(bundle.path / "manifest.json").path == bundle.path
    assert (lm_bundle.kind, classifier_bundle.kind) == ("language_model", "classification")
    assert lm_bundle.file_bytes["model.bin"] == (lm_bundle.path / "model.bin").stat().st_size
    assert "classifier.npy" in classifier_bundle.file_bytes
    assert "classifier.npy" not in lm_bundle.file_bytes


def test_the_digest_is_that_of_the_manifest(lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    assert open_bundle(copy).digest == lm_bundle.digest
    edit_manifest(copy, put("other", "model", "name"))
    assert open_bundle(copy).digest != lm_bundle.digest


def test_every_file_is_listed(lm_bundle: Bundle) -> None:
    there = {p.relative_to(lm_bundle.path).as_posix() for p in lm_bundle.path.rglob("*") if p.is_file()}
    assert there == lm_bundle.file_bytes.keys() | {"manifest.json"}
    assert there >= {"NOTICE.txt", "golden.npz", "model.bin", "model.onnx", "run.pyz", "tokenizer.json"}


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_changed_byte_in_any_file_is_found(
    where: str, lm_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(lm_bundle)
    for name, size in lm_bundle.file_bytes.items():
        data = bytearray((copy / name).read_bytes())
        data[{"first": 0, "middle": size // 2, "last": size - 1}[where]] ^= 1
        (copy / name).write_bytes(data)
        refused(copy, f"{name}: tampered or damaged bundle: wrong sha256")
        data[{"first": 0, "middle": size // 2, "last": size - 1}[where]] ^= 1
        (copy / name).write_bytes(data)
    open_bundle(copy)


def test_a_missing_longer_or_shorter_file_is_found(lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    for name, size in lm_bundle.file_bytes.items():
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-1])
        refused(
            copy, f"{name}: tampered or damaged bundle: wrong size; found {size - 1} bytes; allowed: {size}"
        )
        (copy / name).write_bytes(whole + b"\0")
        refused(copy, f"{name}: tampered or damaged bundle: wrong size; found {size + 1} bytes")
        (copy / name).unlink()
        refused(copy, f"{name}: incomplete bundle: a file is missing")
        (copy / name).mkdir()
        refused(copy, f"{name}: incomplete bundle: a file is missing")
        (copy / name).rmdir()
        (copy / name).write_bytes(whole)
    open_bundle(copy)


def test_files_that_are_not_listed_do_no_harm(lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    (copy / "result.json").write_text("{}", "utf-8")
    (copy / "eval" / "notes.txt").write_text("mine", "utf-8")
    assert "result.json" not in open_bundle(copy).file_bytes


def test_no_bundle_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "not a bundle: manifest.json is missing")
    refused(tmp_path, "not a bundle: manifest.json is missing. Give the bundle directory")
    (tmp_path / "manifest.json").mkdir()
    refused(tmp_path, "not a bundle: manifest.json is missing")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        (b'{"schema": NaN}', "cannot be read; found NaN is no JSON number"),
        (b"[]", "must hold a JSON object; found list"),
        (b"null", "must hold a JSON object; found NoneType"),
        (b"{}", "bundle of another schema; found no schema; allowed: qslm-edge/bundle/1"),
        (b'{"schema": "qslm-edge/bundle/2"}', "found qslm-edge/bundle/2; allowed: .*the run.pyz inside it"),
        (b'{"schema": ["qslm-edge/bundle/1"]}', "bundle of another schema"),
        (b'{"schema": "qslm-edge/bundle/1"}', "manifest.json: tool: key is missing or of the wrong type"),
    ],
)
def test_a_damaged_manifest_is_one_line(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    refused(tmp_path, match)


def test_a_huge_manifest_is_not_read(
    lm_bundle: Bundle, copy_bundle: CopyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_bundle(lm_bundle)
    size = (copy / "manifest.json").stat().st_size
    monkeypatch.setattr(reader, "MAX_MANIFEST_BYTES", size)
    open_bundle(copy)
    monkeypatch.setattr(reader, "MAX_MANIFEST_BYTES", size - 1)
    refused(copy, "manifest is too large; allowed: ")


@pytest.mark.parametrize("keys", REQUIRED, ids=".".join)
def test_every_key_that_the_runner_reads_is_required(
    keys: tuple[str, ...], lm_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(lm_bundle)
    whole = (copy / "manifest.json").read_bytes()
    edit_manifest(copy, drop(*keys))
    refused(copy, f"manifest.json: {'.'.join(keys)}: key is missing or of the wrong type; found nothing")
    for value, found in ((True, "bool"), ([[]] if keys[-1] in ("files", "providers") else [], "list")):
        (copy / "manifest.json").write_bytes(whole)
        edit_manifest(copy, put(value, *keys))
        if keys[-1] not in ("files", "providers") or found == "bool":
            refused(copy, f"{'.'.join(keys)}: key is missing or of the wrong type; found {found}; allowed: ")


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (put("regression", "task", "kind"), "unknown kind of task; found regression"),
        (put([], "runtime", "providers"), "no execution provider is named"),
        (put(0, "state", "n_layer"), "state.n_layer: impossible size; found 0; allowed: 1 to 256"),
        (put(10**9, "state", "n_layer"), "impossible size"),
        (put(10**9, "state", "n_embd"), "impossible size"),
        (put(2**21, "model", "vocab_size"), "impossible size"),
        (put("other.npz", "golden", "file"), "names files that it has no digest for; found other.npz"),
        (put("other.npz", "expected", "scores"), "no digest for; found other.npz"),
        (put("eval/other.npz", "items", "search", "file"), "no digest for; found eval/other.npz"),
        (put("eval/other.npz", "items", "report", "float"), "no digest for; found eval/other.npz"),
        (put("../golden.npz", "golden", "file"), "no digest for"),
    ],
)
def test_values_that_cannot_be_are_refused(
    edit: Any, match: str, lm_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(lm_bundle)
    edit_manifest(copy, edit)
    refused(copy, match)


def test_the_model_files_must_be_listed(
    lm_bundle: Bundle, classifier_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    for bundle, names in ((lm_bundle, ("model.onnx", "model.bin")), (classifier_bundle, ("classifier.npy",))):
        copy = copy_bundle(bundle)
        whole = (copy / "manifest.json").read_bytes()
        for name in names:

            def unlist(manifest: dict[str, Any], name: str = name) -> None:
                manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != name]

            edit_manifest(copy, unlist)
            refused(copy, f"names files that it has no digest for; found {name}")
            (copy / "manifest.json").write_bytes(whole)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    "name",
    [
        *("../outside", "eval/../../outside", "/etc/passwd", "C:\\windows", "c:/windows", "..\\outside"),
        *("\\\\host\\share", "eval\\..\\..\\x", "a\0b", ".."),
    ],
)
def test_a_path_cannot_leave_the_bundle(name: str, lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    (copy.parent / "outside").write_bytes(b"secret")
    edit_manifest(copy, lambda m: m["files"].append({"path": name, "bytes": 6, "sha256": "0" * 64}))
    refused(copy, "a path leaves the bundle")


@pytest.mark.parametrize(
    "entry",
    [
        *("model.onnx", 3, None, [], {}, {"path": "x"}, {"path": "x", "bytes": 1}),
        {"path": "x", "bytes": "1", "sha256": "0"},
        {"path": "x", "bytes": 1, "sha256": 7},
        {"path": ["x"], "bytes": 1, "sha256": "0"},
        {"path": "./NOTICE.txt", "bytes": 1, "sha256": "0"},
        {"path": "NOTICE.txt", "bytes": 1, "sha256": "0"},
        {"path": "", "bytes": 1, "sha256": "0"},
    ],
)
def test_a_damaged_list_of_files_is_refused(entry: Any, lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    copy = copy_bundle(lm_bundle)
    edit_manifest(copy, lambda m: m["files"].append(entry))
    refused(copy, "damaged list of files")


# ---- what lies in the files


def test_items_scores_and_golden_vectors_are_read(lm_bundle: Bundle, classifier_bundle: Bundle) -> None:
    for bundle in (lm_bundle, classifier_bundle):
        for split in ("search", "report"):
            items = bundle.items(split)
            entry = bundle.manifest["items"][split]
            assert (items.n_items, items.digest, items.split) == (entry["n_items"], entry["digest"], split)
            scores, top = bundle.float_scores(split)
            assert scores.index.tolist() == list(range(items.n_items))
            assert (top is None) == (bundle.kind == "classification")
            if top is not None:
                assert (len(top), top.dtype.name) == (items.n_tokens, "int32")
        assert bundle.expected_scores().n_items == bundle.manifest["items"]["search"]["n_items"]
        golden = bundle.golden()
        assert golden["tokens"].shape == golden["mask"].shape
    weight = classifier_bundle.classifier_weight()
    assert (weight.shape, weight.dtype.name) == ((2, 64), "float32")


def test_items_of_another_digest_are_refused(lm_bundle: Bundle) -> None:
    manifest = json.loads(json.dumps(lm_bundle.manifest))
    manifest["items"]["search"]["digest"] = "0" * 64
    with pytest.raises(BundleError, match="items are not those of the manifest"):
        Bundle(lm_bundle.path, manifest).items("search")
    del manifest["items"]["search"]
    with pytest.raises(BundleError, match="bundle has no such items; found search"):
        Bundle(lm_bundle.path, manifest).items("search")


def test_labels_are_checked_against_the_classes_of_the_model(
    classifier_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(classifier_bundle)
    three = Items(
        "tiny",
        "search",
        np.arange(3, dtype=np.int32),
        np.arange(4, dtype=np.int64),
        labels=np.array([0, 1, 2], np.int8),
    )
    three.save(copy / "eval" / "search.npz")
    manifest = json.loads(json.dumps(classifier_bundle.manifest))
    manifest["items"]["search"]["digest"] = three.digest
    with pytest.raises(DataError, match="labels out of range"):
        Bundle(copy, manifest).items("search")
    manifest["model"]["num_labels"] = 3
    assert Bundle(copy, manifest).items("search").n_items == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"no archive", npy(np.zeros(3))])
def test_arrays_that_cannot_be_read_are_one_line(
    content: bytes, lm_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    bundle = Bundle(copy_bundle(lm_bundle), lm_bundle.manifest)
    for name, read in (
        ("golden.npz", bundle.golden),
        ("eval/search-expected.npz", bundle.expected_scores),
        ("eval/report-float.npz", lambda: bundle.float_scores("report")),
    ):
        (bundle.path / name).write_bytes(content)
        with pytest.raises(BundleError, match=f"{name}: cannot be read"):
            read()


def test_missing_arrays_and_objects_are_refused(lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    bundle = Bundle(copy_bundle(lm_bundle), lm_bundle.manifest)
    path = bundle.path / "golden.npz"
    save_arrays(path, {"tokens": np.zeros((4, 2), np.int32), "mask": np.ones((4, 2), np.float32)})
    with pytest.raises(BundleError, match="arrays are missing; found expected"):
        bundle.golden()
    ones = np.ones(0, np.float32)
    save_arrays(path, {"tokens": np.zeros(0, np.int32), "mask": ones, "expected": ones})
    with pytest.raises(BundleError, match=r"golden tokens must be \[T, B\]; found \[0\]"):
        bundle.golden()
    buffer = io.BytesIO()
    np.savez(buffer, tokens=np.array([{"a": 1}], object), allow_pickle=True)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(BundleError, match="cannot be read; found Object arrays"):
        bundle.golden()


@pytest.mark.parametrize(
    "weight",
    [np.zeros((2, 63), np.float32), np.zeros(64, np.float32), np.zeros((2, 64)), np.zeros((2, 64), np.int8)],
)
def test_a_classifier_matrix_of_another_shape_is_refused(
    weight: Any, classifier_bundle: Bundle, copy_bundle: CopyBundle
) -> None:
    copy = copy_bundle(classifier_bundle)
    np.save(copy / "classifier.npy", weight)
    bundle = Bundle(copy, classifier_bundle.manifest)
    with pytest.raises(BundleError, match="not the matrix of this classifier"):
        bundle.classifier_weight()
    (copy / "classifier.npy").unlink()
    with pytest.raises(BundleError, match="classifier.npy: cannot be read"):
        bundle.classifier_weight()
