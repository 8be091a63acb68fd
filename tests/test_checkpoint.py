"""Every form a model can have, and every way it can be broken."""

import json
import os
import pickle
import shutil
import stat

import pytest
import torch
import transformers
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel, ElectraConfig, ElectraModel

import evaluate
import SemanticSearch
from data.dataloader import convert_to_tensor, example_model_setting
from data.errors import RunError, UserError
from model import checkpoint
from model.checkpoint import load_encoder, save_encoder
from model.pooling import POOLINGS

TINY_KOBERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def run_folder(tiny_bert, tmp_path):
    save_encoder(load_encoder(tiny_bert, pooling="mean", max_len=20), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def published(tiny_bert, tmp_path, monkeypatch, vocabulary_files):
    """A checkpoint in the published layout, of a KoBERT that is tiny in width and depth."""
    weights = load_encoder(tiny_bert).bert.state_dict()
    size = {"vocab_size": len(weights["embeddings.word_embeddings.weight"]), "max_position_embeddings": 64}
    monkeypatch.setattr(checkpoint, "KOBERT_CONFIG", {**TINY_KOBERT, **size, "pad_token_id": 1})
    state = {f"bert.{key}": value for key, value in weights.items()}
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"model": state, "optimizer": optimizer}, tmp_path / "published.pt")
    return tmp_path / "published.pt"


@pytest.mark.parametrize("pooling", POOLINGS)
def test_save_and_load_every_pooling(pooling, tiny_bert, tmp_path, sample_sentences):
    encoder = load_encoder(tiny_bert, pooling=pooling, max_len=17)
    save_encoder(encoder, tmp_path)
    expected = encoder.encode(sample_sentences[:5])
    for name in (tmp_path, tmp_path / "model", tmp_path / "nli_checkpoint.pt"):
        again = load_encoder(str(name))
        assert (again.pooling, again.max_len) == (pooling, 17)
        assert torch.equal(again.encode(sample_sentences[:5]), expected)


def test_a_lone_checkpoint_file_is_enough(run_folder, tmp_path, sample_sentences):
    expected = load_encoder(run_folder).encode(sample_sentences[:5])
    lone = tmp_path / "elsewhere"
    lone.mkdir()
    (run_folder / "nli_checkpoint.pt").rename(lone / "nli_checkpoint.pt")
    assert torch.equal(load_encoder(lone).encode(sample_sentences[:5]), expected)


def test_other_families_and_fast_tokenizers_survive_the_round_trip(tmp_path, sample_sentences):
    mini = load_encoder("mini", pooling="mean")
    save_encoder(mini, tmp_path / "mini")
    torch.manual_seed(0)
    electra = ElectraModel(
        ElectraConfig(vocab_size=12_000, hidden_size=32, embedding_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    electra.save_pretrained(tmp_path / "electra")
    mini.tokenizer.save_pretrained(tmp_path / "electra")
    encoder = load_encoder(tmp_path / "electra", pooling="cls")
    save_encoder(encoder, tmp_path / "run")
    for original, folder in ((mini, "mini"), (encoder, "run")):
        for name in (tmp_path / folder, tmp_path / folder / "nli_checkpoint.pt"):
            expected = original.encode(sample_sentences[:5])
            assert torch.equal(load_encoder(name).encode(sample_sentences[:5]), expected)


def test_the_saved_folder_is_plain_hugging_face(run_folder, tiny_bert):
    saved = AutoModel.from_pretrained(run_folder / "model").state_dict()
    original = AutoModel.from_pretrained(tiny_bert).state_dict()
    assert all(torch.equal(saved[key], original[key]) for key in original if not key.startswith("pooler."))
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (run_folder / "model").iterdir()}
    assert len(modes) == 1
    assert not [file for file in os.listdir(run_folder) if "building" in file or file.startswith(".")]


def test_published_layout(published, tiny_bert, vocabulary_files, sample_sentences):
    for tokenizer in vocabulary_files:
        encoder = load_encoder(published, tokenizer=tokenizer)
        assert (encoder.pooling, encoder.max_len) == ("pooler", 50)
        expected = load_encoder(tiny_bert).encode(sample_sentences[:5])
        assert torch.equal(encoder.encode(sample_sentences[:5]), expected)
    mean = load_encoder(published, tokenizer=vocabulary_files[0], pooling="mean")
    expected = load_encoder(tiny_bert, pooling="mean").encode(sample_sentences[:5])
    assert torch.equal(mean.encode(sample_sentences[:5]), expected)


def test_published_layout_through_the_scripts(published, vocabulary_files, few_pairs, monkeypatch, capsys):
    """The tokenizer by flag, or in the README's demo by the environment variable."""
    monkeypatch.setenv("KOSIMCSE_TOKENIZER", str(vocabulary_files[0]))
    model, transform, device = example_model_setting(str(published))
    expected = load_encoder(published, tokenizer=vocabulary_files[0]).encode("비가 온다.")
    assert torch.equal(model.encode(convert_to_tensor(["비가 온다."], transform), device), expected)
    argv = ["--model", str(published), "--tokenizer", str(vocabulary_files[0])]
    evaluate.main([*argv, "--test_data", str(few_pairs)])
    SemanticSearch.main(argv)
    assert capsys.readouterr().out.count("Score:") == 15


def test_published_layout_at_kobert_size(shared, tmp_path, sample_sentences):
    bert = BertModel(BertConfig(vocab_size=8002, pad_token_id=1)).eval()
    state = {f"bert.{key}": value for key, value in bert.state_dict().items()}
    state["bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "nli_checkpoint.pt")
    encoder = load_encoder(tmp_path / "nli_checkpoint.pt", tokenizer=shared / "kobert" / "tokenizer_78b3253a26.model")
    ids = encoder.tokenizer(sample_sentences[0], return_tensors="pt")
    with torch.no_grad():
        expected = bert(**ids).pooler_output
    torch.testing.assert_close(encoder.encode(sample_sentences[0]), expected)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sentence_transformers_folder(pooling, tiny_bert, tmp_path, sample_sentences):
    """Their own library writes the folder and encodes with it; we read it and give the same embeddings."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    encoder = load_encoder("mini", pooling=pooling)
    encoder.bert.save_pretrained(tmp_path / "backbone")
    encoder.tokenizer.save_pretrained(tmp_path / "backbone")
    transformer = Transformer(str(tmp_path / "backbone"), max_seq_length=32)
    theirs = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)], device="cpu"
    )
    theirs.save(str(tmp_path / "theirs"))
    ours = load_encoder(tmp_path / "theirs")
    assert (ours.pooling, ours.max_len) == (pooling, 32)
    expected = theirs.encode(sample_sentences[:9], convert_to_tensor=True)
    torch.testing.assert_close(ours.encode(sample_sentences[:9]), expected, atol=1e-5, rtol=1e-4)


def old_sentence_transformers_folder(tiny_bert, folder, pooling_config, extra_modules=()):
    """The layout of version 2, which most folders on the hub have: the backbone at the top."""
    shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling_config))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *extra_modules]
    entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder


def test_old_sentence_transformers_folder(tiny_bert, tmp_path):
    config = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    encoder = load_encoder(old_sentence_transformers_folder(tiny_bert, tmp_path, config))
    assert (encoder.pooling, encoder.max_len) == ("mean", 24)


@pytest.mark.parametrize("setting", [{"default_prompt_name": "query"}, {"truncate_dim": 8}])
def test_what_sentence_transformers_does_beside_is_refused(setting, tiny_bert, tmp_path):
    folder = old_sentence_transformers_folder(tiny_bert, tmp_path, {"pooling_mode_mean_tokens": True})
    (folder / "config_sentence_transformers.json").write_text(json.dumps(setting))
    with pytest.raises(UserError, match=f"is used with {next(iter(setting))} .*, which is not done here"):
        load_encoder(folder)


def test_a_length_beyond_the_models_positions_is_no_length(tiny_bert, tmp_path):
    folder = old_sentence_transformers_folder(tiny_bert, tmp_path, {"pooling_mode_mean_tokens": True})
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8192}')
    encoder = load_encoder(folder)
    assert encoder.max_len == encoder.bert.config.max_position_embeddings


def test_weights_of_another_shape_are_named(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 7}))
    with pytest.raises(UserError, match=r"0.intermediate.dense.bias has the shape .*, its configuration says \(7"):
        load_encoder(folder, "mean")


def test_normalize_of_sentence_transformers_stays(tiny_bert, tmp_path, sample_sentences):
    config, extra = {"pooling_mode_mean_tokens": True}, [("2_Normalize", "Normalize")]
    plain = load_encoder(tiny_bert, "mean", 24).encode(sample_sentences[:5])
    encoder = load_encoder(old_sentence_transformers_folder(tiny_bert, tmp_path, config, extra))
    save_encoder(encoder, tmp_path / "run")
    for again in (encoder, *(load_encoder(tmp_path / "run" / name) for name in ("model", "nli_checkpoint.pt"))):
        torch.testing.assert_close(again.encode(sample_sentences[:5]), plain / plain.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    "config, extra, message",
    [
        ({"pooling_mode_max_tokens": True}, [], "its pooling is not one of ours"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [], "its pooling is not one of ours"),
        ({"pooling_mode_mean_tokens": True}, [("2_Dense", "Dense")], "has the modules .*Dense"),
    ],
)
def test_sentence_transformers_folders_we_cannot_repeat(config, extra, message, tiny_bert, tmp_path):
    with pytest.raises(UserError, match=message):
        load_encoder(old_sentence_transformers_folder(tiny_bert, tmp_path, config, extra))


@pytest.mark.parametrize("name", ["modules.json", "sentence_encoder.json"])
@pytest.mark.parametrize("content", ["[1]", '[{"path": ""}]', '{"a": 1}', '"text"', "[null]"])
def test_settings_of_another_shape(name, content, tiny_bert, tmp_path):
    folder = old_sentence_transformers_folder(tiny_bert, tmp_path, {"pooling_mode_cls_token": True})
    (folder / name).write_text(content)
    if name == "sentence_encoder.json" and content == '{"a": 1}':
        assert load_encoder(folder).pooling == "pooler"  # as where it says nothing
    else:
        with pytest.raises(UserError, match=f"{name}: expected"):
            load_encoder(folder)


@pytest.mark.parametrize("key, value", [("hidden_act", "nosuch"), ("num_attention_heads", 5), ("hidden_size", -4)])
def test_configurations_that_make_no_model(key, value, tiny_bert, tmp_path):
    save_encoder(load_encoder(tiny_bert), tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match="configuration|not a model folder"):
        load_encoder(tmp_path / "model")


def test_weights_that_are_no_numbers(tiny_bert, tmp_path):
    encoder = load_encoder(tiny_bert)
    encoder.bert.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    save_encoder(encoder, tmp_path)
    for name in ("model", "nli_checkpoint.pt"):
        with pytest.raises(UserError, match="infinite or none at all"):
            load_encoder(tmp_path / name)


def test_pretrained_backbone_with_a_head(tiny_bert, tmp_path, sample_sentences, capsys):
    """A masked-LM model has an unused head and no pooler: fine for mean, initialised in training for pooler."""
    tokenizer = load_encoder(tiny_bert).tokenizer
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=1, **TINY_KOBERT)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_encoder(tmp_path, pooling="mean").encode(sample_sentences[:2]).isfinite().all()
    with pytest.raises(UserError, match="the weights have no pooler; choose another --pooling"):
        load_encoder(tmp_path, pooling="pooler")
    load_encoder(tmp_path, pooling="pooler", training=True)
    assert "starts at random" in capsys.readouterr().err


def test_half_precision_weights_are_read_as_float32(tiny_bert, tmp_path):
    encoder = load_encoder(tiny_bert)
    encoder.tokenizer.save_pretrained(tmp_path)
    encoder.bert.half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_encoder(tmp_path).parameters()} == {torch.float32}


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"bert.x": Harmful()}}, "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UserError, match="refused because loading them could run code"):
            load_encoder(name)
    assert not (tmp_path / "harmed").exists()


def truncate(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_broken_files(run_folder, published, tmp_path, vocabulary_files, tiny_bert):
    (tmp_path / "text.pt").write_text("this is no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": {"roberta.x": torch.zeros(1)}}, tmp_path / "roberta.pt")
    for name, message in [
        ("text.pt", "not a whole PyTorch checkpoint"),
        ("empty.pt", "not a whole PyTorch checkpoint"),
        ("list.pt", "expected {.model.: {.bert.NAME.: tensor"),
        ("roberta.pt", "expected tensors named bert"),
    ]:
        with pytest.raises(UserError, match=message):
            load_encoder(tmp_path / name)
    truncate(run_folder / "nli_checkpoint.pt")
    with pytest.raises(UserError, match="not a whole PyTorch checkpoint"):
        load_encoder(run_folder / "nli_checkpoint.pt")
    truncate(run_folder / "model" / "model.safetensors")
    with pytest.raises(UserError, match="these weights cannot be loaded"):
        load_encoder(run_folder)
    (run_folder / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="these weights cannot be loaded"):
        load_encoder(run_folder)


def test_another_architecture_is_refused(published, vocabulary_files, monkeypatch):
    other = {**checkpoint.KOBERT_CONFIG, "num_hidden_layers": 3}
    monkeypatch.setattr(checkpoint, "KOBERT_CONFIG", other)
    with pytest.raises(UserError, match="not this architecture's .* 16 missing"):
        load_encoder(published, tokenizer=vocabulary_files[0])
    monkeypatch.setattr(checkpoint, "KOBERT_CONFIG", {**other, "num_hidden_layers": 1})
    with pytest.raises(UserError, match="16 unexpected, such as encoder.layer.1"):
        load_encoder(published, tokenizer=vocabulary_files[0])
    monkeypatch.setattr(checkpoint, "KOBERT_CONFIG", {**other, "num_hidden_layers": 2, "intermediate_size": 65})
    with pytest.raises(UserError, match="has the shape .*, its configuration says"):
        load_encoder(published, tokenizer=vocabulary_files[0])


def test_a_tokenizer_of_another_model_is_refused(published):
    with pytest.raises(UserError, match="the tokenizer's vocabulary .12,000. is larger than the model's"):
        load_encoder(published, tokenizer=checkpoint.MINI)


def test_a_models_own_tokenizer_is_never_replaced(run_folder, sample_sentences, capsys):
    expected = load_encoder(run_folder).encode(sample_sentences[:3])
    for name in (run_folder, run_folder / "nli_checkpoint.pt"):
        encoder = load_encoder(name, tokenizer=checkpoint.MINI)
        assert torch.equal(encoder.encode(sample_sentences[:3]), expected)
        assert "has its own tokenizer" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer(tiny_bert, tmp_path, vocabulary_files, sample_sentences):
    original = load_encoder(tiny_bert)
    original.bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="comes without a tokenizer; name one with --tokenizer"):
        load_encoder(tmp_path)
    encoder = load_encoder(tmp_path, tokenizer=vocabulary_files[0])
    assert torch.equal(encoder.encode(sample_sentences[:3]), original.encode(sample_sentences[:3]))


@pytest.mark.parametrize("family", ["PegasusConfig", "GPT2Config", "ViTConfig", "CLIPConfig"])
def test_what_is_no_text_encoder_is_refused(family, tmp_path):
    getattr(transformers, family)().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not a text encoder"):
        load_encoder(tmp_path)


def test_code_that_a_model_folder_brings_is_not_run(tiny_bert, tmp_path, monkeypatch):
    """A folder may name Python files of its own; on a terminal transformers would offer to run them."""
    config = json.loads((tiny_bert / "config.json").read_text())
    config.update(model_type="harmful", auto_map={"AutoConfig": "harm.Config", "AutoTokenizer": ["harm.T", None]})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "harm.py").write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    with pytest.raises(UserError, match="not a model folder"):
        load_encoder(tmp_path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("file", ["config.json", "sentence_encoder.json"])
def test_broken_json_in_a_model_folder(file, run_folder):
    (run_folder / "model" / file).write_text('{"pooling": ')
    with pytest.raises(UserError, match=file if file.startswith("sentence") else "not a model folder"):
        load_encoder(run_folder)


def test_settings_of_the_wrong_kind(run_folder):
    (run_folder / "model" / "sentence_encoder.json").write_text('{"pooling": "mean", "max_len": "20"}')
    with pytest.raises(UserError, match="its maximum length is '20'"):
        load_encoder(run_folder)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {1: torch.zeros(1)}}, "holds 1; expected tensors named bert"),
        ({"model": {"bert.x": "text"}}, "holds 'bert.x'; expected tensors"),
        ({"model": {"bert.x": torch.zeros(1)}, "encoder": 3}, "its 'encoder' part"),
        ({"model": {"bert.x": torch.zeros(1)}, "encoder": {}}, "its 'encoder' part"),
    ],
)
def test_odd_content(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / "odd.pt")


def test_the_old_format_of_torch_save_is_read(published, tmp_path, vocabulary_files, sample_sentences):
    content = torch.load(published, weights_only=True)
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old, new = (load_encoder(path, tokenizer=vocabulary_files[0]) for path in (tmp_path / "old.pt", published))
    assert torch.equal(old.encode(sample_sentences[:3]), new.encode(sample_sentences[:3]))


def test_a_published_file_without_a_tokenizer_names_the_flag(published, capsys):
    with pytest.raises(RunError, match="skt/kobert-base-v1: .* cannot be reached"):
        load_encoder(published)
    message = capsys.readouterr().err
    assert all(words in message for words in ("holds weights only", "--tokenizer", "KOSIMCSE_TOKENIZER"))


def test_an_interrupted_write_leaves_the_checkpoint_before(run_folder, sample_sentences, monkeypatch):
    """A disk that is full at any of the writes: the sentence, and the old checkpoint still loads."""
    before = load_encoder(run_folder)
    expected = before.encode(sample_sentences[:3])
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(1.0)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def full_disk_in_rust(*args, **kwargs):
        raise Exception("No space left on device (os error 28)")

    for target, error in {
        **dict.fromkeys(("torch.save", "transformers.PreTrainedModel.save_pretrained", "os.fsync"), full_disk),
        "transformers.PreTrainedTokenizerBase.save_pretrained": full_disk_in_rust,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(target, error)
            with pytest.raises(RunError, match="could not be written .*No space left"):
                save_encoder(before, run_folder)
        for name in (run_folder, run_folder / "nli_checkpoint.pt"):
            assert torch.equal(load_encoder(name).encode(sample_sentences[:3]), expected)
        assert {file.name for file in run_folder.iterdir()} == {"model", "nli_checkpoint.pt"}
