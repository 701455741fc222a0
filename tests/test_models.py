"""A model is found, loaded and described; whatever cannot be used is refused in one line that says what to do."""

from __future__ import annotations

import http.server
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from spawning import execute, warm_context
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, T5Config

import moe_probe as mp
from moe_probe.models import loading, sources
from moe_probe_data import MODEL

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a tiny Mixtral, without a tokenizer, to be spoilt."""
    return tiny_models.save("mixtral", tmp_path / "tiny")


def change_config(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


# --- what is loaded ------------------------------------------------------------------------------------------------


def test_the_bundled_model_comes_with_tokenizer_context_and_device() -> None:
    lm = mp.load("tiny-mixtral", device_map="cpu")
    assert (lm.name, lm.revision, lm.quantization, lm.context) == ("tiny-mixtral", None, None, 1024)
    assert lm.device == torch.device("cpu")
    assert lm.model.dtype == torch.float32
    assert not lm.model.training
    assert lm.tokenizer.decode(lm.tokenizer("An expert.").input_ids, skip_special_tokens=True) == "An expert."


def test_a_folder_without_a_tokenizer_has_none(folder: Path) -> None:
    lm = mp.load(folder, device_map="cpu")
    assert lm.tokenizer is None
    assert lm.name == str(folder)
    assert lm.context == 256


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
def test_the_type_to_compute_in_is_the_one_asked_for(folder: Path, dtype) -> None:
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert mp.load(folder, dtype=dtype, device_map="cpu").model.dtype == expected
    quantised = mp.load(folder, dtype=dtype, quantization="8bit", device_map="cpu").model
    assert quantised.dtype == quantised.model.layers[0].mlp.gate.weight.dtype == expected
    assert quantised(torch.arange(3, 9)[None]).logits.isfinite().all()


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu() -> None:
    assert loading._choose_dtype("auto", on_gpu=True) == torch.bfloat16
    assert loading._choose_dtype("auto", on_gpu=False) == torch.float32


def test_sixteen_bits_are_the_checkpoints_own_weights(folder: Path) -> None:
    model = mp.load(folder, dtype="bfloat16", device_map="cpu").model
    original = load_file(folder / "model.safetensors")
    assert torch.equal(model.lm_head.weight, original["lm_head.weight"])
    first = [original[f"model.layers.1.block_sparse_moe.experts.5.w{number}.weight"] for number in (1, 3)]
    assert torch.equal(model.model.layers[1].mlp.experts.gate_up_proj[5], torch.cat(first))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_the_experts_implementation_is_passed_on(folder: Path, implementation: str) -> None:
    lm = mp.load(folder, experts_implementation=implementation, device_map="cpu")
    assert lm.model.config._experts_implementation == implementation


def test_a_dense_model_loads_as_well(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=32, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    parts = {part.part: part.dtype for part in mp.load(tmp_path, quantization="8bit", device_map="cpu").parts}
    assert (parts["experts"], parts["router"], parts["attention"], parts["other"]) == ("none", "none", "int8", "int8")


def test_a_fingerprint_changes_with_weights_precision_and_implementation(folder: Path) -> None:
    first = mp.load(folder, device_map="cpu").fingerprint()
    assert first == mp.load(folder, device_map="cpu").fingerprint()
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    others = {
        mp.load(folder, device_map="cpu", quantization="8bit").fingerprint(),
        mp.load(folder, device_map="cpu", quantization="4bit").fingerprint(),
        mp.load(folder, device_map="cpu", dtype="bfloat16").fingerprint(),
        mp.load(folder, device_map="cpu", experts_implementation="eager").fingerprint(),
    }
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    others.add(mp.load(folder, device_map="cpu").fingerprint())
    change_config(folder, rms_norm_eps=1e-4)
    others.add(mp.load(folder, device_map="cpu").fingerprint())
    assert len(others - {first}) == 6


def test_weights_that_openai_quantised_are_given_back_their_sixteen_bits(tmp_path: Path) -> None:
    tiny_models.save("gpt_oss", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        n_experts, n_inputs, n_outputs = tensors.pop(name).shape
        # Every weight is the eight-bit exponent 2^0 of its block times the four-bit value 1.0 (code 2), twice a byte.
        tensors[f"{name}_blocks"] = torch.full((n_experts, n_outputs, n_inputs // 32, 16), 0x22, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.full((n_experts, n_outputs, n_inputs // 32), 127, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    change_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    lm = mp.load(tmp_path, dtype="bfloat16", device_map="cpu")
    assert (lm.parts[0].dtype, lm.quantization) == ("bfloat16", None)
    assert (lm.model.model.layers[0].mlp.experts.down_proj == 1).all()
    with pytest.raises(mp.BadInputError, match=r"quantised already \(mxfp4\); leave quantization='4bit' out"):
        mp.load(tmp_path, quantization="4bit", device_map="cpu")


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "2bit"}, r"quantization='2bit': use None \(16 bits\), '8bit' or '4bit'"),
        (
            {"dtype": "int8"},
            r"dtype='int8': use 'auto', 'float32', 'bfloat16', 'float16'; for fewer bits quantization=",
        ),
        ({"dtype": torch.float64}, r"dtype=torch\.float64: use 'auto'"),
        ({"revision": "main"}, r"revision='main': tiny-mixtral is a folder; only a model on the hub has revisions"),
        (
            {"quantization": "4bit", "experts_implementation": "eager"},
            "experts_implementation='eager': quantised experts have one of their own; leave it out",
        ),
    ],
)
def test_an_argument_that_makes_no_sense_is_named_with_its_value(arguments, message) -> None:
    with pytest.raises(mp.BadInputError, match=message):
        mp.load("tiny-mixtral", **arguments)


@pytest.mark.parametrize(
    "model", ["./missing", "/missing/folder", "a/b/c", "~missing/model", Path("missing"), "org/na me"]
)
def test_a_path_to_nothing_is_no_hub_id(model: str | Path) -> None:
    with pytest.raises(
        mp.BadInputError, match=r"missing|a/b/c|org/na me.*: no such folder; give a folder .* 'tiny-mix"
    ):
        mp.load(model)


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(mp.BadInputError, match=r"no config\.json in this folder"):
        mp.load(tmp_path)
    with pytest.raises(mp.BadInputError, match="is a file; give the folder that holds it"):
        mp.load(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(mp.BadInputError, match=r"config.json but no weights \(\*.safetensors\)"):
        mp.load(folder)


def test_a_config_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(mp.BadInputError, match=r"its config\.json cannot be read: .*valid JSON"):
        mp.load(folder)
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(mp.UnsupportedModelError, match="nonesuch"):
        mp.load(folder)


def test_a_model_that_generates_nothing_is_refused(folder: Path) -> None:
    T5Config().save_pretrained(folder)
    with pytest.raises(
        mp.UnsupportedModelError, match=r"transformers 5\.\d+\.\d+ has no causal language model .* 't5'"
    ):
        mp.load(folder)


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(folder: Path) -> None:
    change_config(folder, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(mp.BadInputError, match=r"brings code of its own; .* pass trust_remote_code=True"):
        mp.load(folder)


def test_a_model_without_a_context_length_is_refused(folder: Path) -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(n_positions=None))
    with pytest.raises(mp.UnsupportedModelError, match="names no context length; add max_position_embeddings"):
        loading._context(SimpleNamespace(config=config), sources.find_source(folder))


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_noise(folder: Path, caplog) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.gate.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            mp.BadInputError, match=r"model\.layers\.1\.mlp\.gate\.weight is not in the checkpoint; is it a MixtralFor"
        ),
    ):
        mp.load(folder, device_map="cpu")
    assert "LOAD REPORT" not in caplog.text


def test_a_checkpoint_of_another_shape_is_refused(folder: Path) -> None:
    change_config(folder, vocab_size=500)
    with pytest.raises(
        mp.BadInputError, match=r"lm_head\.weight is \(512, 64\) in the checkpoint, .* asks for \(500, 64\)"
    ):
        mp.load(folder, device_map="cpu")


def test_weights_that_are_not_used_are_told(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"model.layers.9.extra": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"model\.layers\.9\.extra is in the checkpoint but not used"):
        mp.load(folder, device_map="cpu")


def test_damaged_weights_are_named(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(mp.BadInputError, match=r"its weights are damaged .*; fetch them again"):
        mp.load(folder, device_map="cpu")


def test_a_tokenizer_that_cannot_be_read_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(mp.BadInputError, match="its tokenizer cannot be read: "):
        mp.load(folder, device_map="cpu")


# --- the hub -------------------------------------------------------------------------------------------------------


class Hub(http.server.SimpleHTTPRequestHandler):
    """As much of the hub as a download needs: one repository, org/name, with a branch and a tag."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if re.fullmatch(r"/api/models/org/name(/revision/(main|v1))?", path):
            self.answer(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode())
        elif found := re.fullmatch(rf"/org/name/resolve/(?:main|v1|{COMMIT})/([\w.]+)", path):
            file = MODEL / found[1]
            self.answer(file.read_bytes() if file.is_file() else None, error="EntryNotFound")
        elif path.startswith("/api/models/org/name/tree"):
            self.answer(None, error="EntryNotFound")
        elif path.startswith("/api/models/org/name/revision"):
            self.answer(None, error="RevisionNotFound")
        else:
            self.answer(None, error="RepoNotFound")

    do_HEAD = do_GET

    def answer(self, body: bytes | None, error: str = "") -> None:
        self.send_response(404 if body is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if body is None:
            self.send_header("X-Error-Code", error)
        else:
            self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


@contextmanager
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ASKER = """
import sys
assert not {"transformers", "huggingface_hub"} & set(sys.modules)
import moe_probe as mp
for name, revision in calls:
    try:
        lm = mp.load(name, revision=revision, device_map="cpu")
        print(lm.name, lm.revision, len(lm.tokenizer), lm.fingerprint())
    except mp.MoeProbeError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Load in a process of its own, as the hub's client reads its settings when it is imported; a line a call."""

    def asked(calls: list[tuple[str, str | None]], **environment: str) -> list[str]:
        settings = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment}
        child = warm_context(monkeypatch).Process(
            target=execute, args=(ASKER, {"calls": calls}, os.environ | settings, tmp_path)
        )
        child.start()
        child.join()
        assert child.exitcode == 0, (tmp_path / "err").read_text()
        return (tmp_path / "out").read_text().splitlines()

    return asked


def test_a_hub_id_is_fetched_once_and_loads_with_no_connection_afterwards(ask: Callable[..., list[str]]) -> None:
    calls = [("org/name", "v1"), ("org/name", None), ("org/name", "v9"), ("org/absent", None)]
    with hub() as address:
        fetched = ask(calls, HF_ENDPOINT=address)
    expected = f"org/name {COMMIT} 8192 "
    assert fetched[0].startswith(expected)
    assert fetched[1] == fetched[0]
    assert fetched[2] == "BadInputError org/name: no revision 'v9' on the hub"
    assert fetched[3].startswith("BadInputError org/absent: no such folder, and no such model on the hub")
    # The hub is gone now, and nothing is listening at its address.
    unreachable = ask([("org/name", None), ("org/absent", None)], HF_ENDPOINT=address)
    assert unreachable[0] == fetched[0]
    assert unreachable[1].startswith(
        "MoeProbeError org/absent: no such folder, and not in the hub's local cache (the hub"
    )
    assert unreachable[1].endswith("; check the name and the connection, or give a folder")


def test_a_hub_id_and_its_revisions_are_found_in_the_cache_offline(
    ask: Callable[..., list[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "hub" / "models--org--name"
    shutil.copytree(MODEL, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "v1").write_text(COMMIT)
    found = ask([("org/name", "v1"), ("org/name", COMMIT), ("org/name", "v2")], HF_HUB_OFFLINE="1")
    assert found[0].startswith(f"org/name {COMMIT} 8192 ")
    assert found[1] == found[0]
    assert found[2].startswith(
        "MoeProbeError org/name: no such folder, and not in the hub's local cache at revision 'v2'"
    )


# --- memory --------------------------------------------------------------------------------------------------------


LAYER_WEIGHTS = 8 * 3 * 1024 * 384
LOADER = """
import ctypes, gc, torch
# Give freed tensors back to the system: those of a real model are large enough for that by themselves.
M_MMAP_THRESHOLD = -3
assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536) == 1
torch.set_num_threads(2)
import moe_probe as mp
for quantization, dtype in precisions:
    # Whatever is imported or built once, in a first load, is not part of the measure.
    mp.load("tiny-mixtral", quantization=quantization, dtype=dtype, device_map="cpu")
for quantization, dtype in precisions:
    gc.collect()
    test.send("ready")
    test.recv()
    lm = mp.load(folder, quantization=quantization, dtype=dtype, device_map="cpu")
    test.send(lm.precision["bytes"].sum())
    test.recv()
    del lm
"""


def anonymous_bytes(process: int) -> int:
    """Memory that a process has written. Pages of a mapped checkpoint are not in it: the system may drop them any time,
    and `VmHWM`, which the system keeps as a peak, counts them."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def big_mixtral(folder: Path) -> Path:
    """Write 105 MB of random Mixtral in bfloat16: four layers of 24 MB, and attention and embeddings."""
    config = MixtralConfig(
        hidden_size=1024,
        intermediate_size=384,
        num_hidden_layers=4,
        vocab_size=2048,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    with torch.device("meta"):
        model = loading.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    noise = torch.randn(1 << 21, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    for parameter in model.parameters():
        parameter.data.view(-1).copy_(noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()])
    model.save_pretrained(folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells written memory from mapped files")
def test_loading_never_holds_more_than_a_layer_beyond_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = [("4bit", "float32"), ("8bit", "bfloat16"), (None, "float32")]
    context = warm_context(monkeypatch)
    loader, theirs = context.Pipe()
    names = {"folder": str(big_mixtral(tmp_path / "model")), "precisions": precisions, "test": theirs}
    child = context.Process(target=execute, args=(LOADER, names, dict(os.environ), tmp_path))
    child.start()
    theirs.close()
    try:
        for quantization, dtype in precisions:
            assert loader.recv() == "ready"
            before = peak = anonymous_bytes(child.pid)
            loader.send("go on")
            while not loader.poll(0.001):
                peak = max(peak, anonymous_bytes(child.pid))
            final = loader.recv()
            layer = LAYER_WEIGHTS * getattr(torch, dtype).itemsize
            held = peak - before
            assert 0.5 * final < held <= final + layer, f"{quantization} {dtype}: {held} of {final} + {layer} bytes"
            loader.send("go on")
        child.join()
        assert child.exitcode == 0
        assert (tmp_path / "err").read_text() == "", "loading prints nothing where nobody watches"
        assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    finally:
        child.kill()
        child.join()
