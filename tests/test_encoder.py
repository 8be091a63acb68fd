"""SentenceEncoder: poolings on a real backbone, encode, and the README's demo."""

import copy
import unicodedata

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from data.dataloader import convert_to_tensor, example_model_setting
from data.errors import UserError
from data.sts import read_sts
from data.tokenize import tokenize
from model.checkpoint import MINI, load_encoder, save_encoder
from model.encoder import SentenceEncoder, max_positions
from model.metrics import evaluate_sts
from model.pooling import POOLINGS
from tests.conftest import SAMPLE


@pytest.fixture(params=POOLINGS)
def encoder(request, tiny_bert):
    return load_encoder(tiny_bert, pooling=request.param, max_len=20)


def encode_one_by_one(encoder, folder, sentences):
    """Each sentence alone through a plain BertModel, pooled by hand."""
    bert = BertModel.from_pretrained(folder).eval()
    embeddings = []
    for sentence in sentences:
        ids = encoder.tokenizer(sentence, truncation=True, max_length=encoder.max_len)["input_ids"]
        with torch.no_grad():
            outputs = bert(torch.tensor([ids]), output_hidden_states=True)
        states = [layer[0] for layer in outputs.hidden_states]
        embeddings.append(
            {
                "pooler": outputs.pooler_output[0],
                "cls": states[-1][0],
                "mean": states[-1].mean(0),
                "mean_first_last": (states[1] + states[-1]).mean(0) / 2,
                "mean_top2": (states[-2] + states[-1]).mean(0) / 2,
            }[encoder.pooling]
        )
    return torch.stack(embeddings)


def test_encode_equals_one_by_one_in_input_order(encoder, tiny_bert, sample_sentences):
    sentences = sample_sentences[:37]
    expected = encode_one_by_one(encoder, tiny_bert, sentences)
    embeddings = encoder.encode(sentences, batch_size=8)
    assert embeddings.shape == (37, encoder.dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)


def test_every_form_of_input(encoder, sample_sentences):
    sentences = sample_sentences[:9]
    expected = encoder.encode(sentences)
    torch.testing.assert_close(encoder.encode(convert_to_tensor(sentences, encoder.tokenize)), expected)
    torch.testing.assert_close(encoder.encode(tokenize(sentences, encoder.tokenizer, 20)), expected)
    torch.testing.assert_close(encoder.encode(sentences[0]), expected[:1])
    torch.testing.assert_close(encoder.encode(iter(sentences)), expected)
    one = convert_to_tensor(sentences[0], encoder.tokenize)
    torch.testing.assert_close(encoder.encode(one), expected[:1])
    assert encoder.encode([]).shape == encoder.encode(convert_to_tensor([], encoder.tokenize)).shape == (0, encoder.dim)
    assert encoder.encode([""]).isfinite().all()
    one["attention_mask"][0] = 0
    with pytest.raises(ValueError, match="row 0"):
        encoder.encode(one)
    with pytest.raises(TypeError, match="item 1 is None"):
        encoder.encode(["가", None])


def test_forward_is_what_encode_returns(encoder, sample_sentences):
    inputs = encoder.tokenize(sample_sentences[:5])
    with torch.no_grad():
        torch.testing.assert_close(encoder(**inputs), encoder.encode(sample_sentences[:5]))
        types = torch.zeros_like(inputs["input_ids"])
        torch.testing.assert_close(encoder(**inputs, token_type_ids=types), encoder(**inputs))


def test_decomposed_text_gives_the_same_embedding(encoder, sample_sentences):
    decomposed = [unicodedata.normalize("NFD", sentence) for sentence in sample_sentences[:5]]
    torch.testing.assert_close(encoder.encode(decomposed), encoder.encode(sample_sentences[:5]))


def test_encode_has_no_dropout_and_keeps_the_mode(encoder, sample_sentences):
    encoder.train()
    first = encoder.encode(sample_sentences[:5])
    assert encoder.training and not first.requires_grad
    assert torch.equal(first, encoder.encode(sample_sentences[:5]))


def test_only_the_pooler_pooling_has_a_pooler(encoder):
    assert any("pooler" in name for name, _ in encoder.named_parameters()) == (encoder.pooling == "pooler")


def test_dropout_reaches_the_backbone(tiny_bert):
    encoder = load_encoder(tiny_bert, dropout=0.37)
    assert encoder.bert.config.hidden_dropout_prob == encoder.bert.config.attention_probs_dropout_prob == 0.37
    rates = {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.37}


def test_impossible_settings_are_refused_with_the_choices(tiny_bert):
    tokenizer = load_encoder(tiny_bert).tokenizer
    electra = ElectraModel(
        ElectraConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(UserError, match="ElectraModel has no pooler as BERT's; choose one of cls, mean$"):
        SentenceEncoder(electra, tokenizer, "pooler")
    with pytest.raises(UserError, match="ElectraModel has one layer; choose one of cls, mean$"):
        SentenceEncoder(electra, tokenizer, "mean_top2")
    with pytest.raises(UserError, match="--pooling max: choose one of cls, mean$"):
        SentenceEncoder(electra, tokenizer, "max")
    with pytest.raises(UserError, match="--max_len 65: this model takes 3 to 64 tokens"):
        load_encoder(tiny_bert, max_len=65)


def test_positions_of_roberta_start_after_the_padding_index():
    assert max_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


def test_mini_is_small_and_beats_overlap_of_characters():
    mini = load_encoder("mini")
    assert (mini.pooling, mini.max_len, mini.bert.dtype) == ("mean", 64, torch.float32)
    assert sum(file.stat().st_size for file in MINI.iterdir()) < 16e6
    pairs = read_sts([SAMPLE / "test_sts.tsv"])
    sentences = [*pairs.sentences1, *pairs.sentences2]
    found = evaluate_sts(mini.encode, sentences, pairs.scores)["cosine_spearman"]
    a, b = np.split(TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit_transform(sentences).toarray(), 2)
    cosines = (a * b).sum(1)  # rows are normalised
    assert found > 100 * spearmanr(cosines, pairs.scores).statistic + 3


def test_random_weights_keep_architecture_and_tokenizer(tiny_bert, tmp_path, sample_sentences):
    def embed(seed):
        torch.manual_seed(seed)
        return load_encoder(tiny_bert, "mean", random_weights=True).encode(sample_sentences[:3])

    assert torch.equal(embed(1), embed(1)) and not torch.equal(embed(1), embed(2))
    trained = load_encoder(tiny_bert, "mean")
    fresh = load_encoder(tiny_bert, "mean", random_weights=True)
    assert fresh.tokenizer.get_vocab() == trained.tokenizer.get_vocab() and fresh.dim == trained.dim
    save_encoder(trained, tmp_path)
    fresh = load_encoder(tmp_path / "nli_checkpoint.pt", "mean", random_weights=True)
    assert not torch.equal(fresh.encode(sample_sentences[:3]), trained.encode(sample_sentences[:3]))


def test_example_model_setting(tiny_bert, sample_sentences):
    model, transform, device = example_model_setting(str(tiny_bert))
    inputs = convert_to_tensor(sample_sentences[:4], transform)
    embeddings = model.encode(inputs, device)
    assert embeddings.shape == (4, 32) and not model.training
    torch.testing.assert_close(embeddings, load_encoder(tiny_bert).encode(sample_sentences[:4]))


FAMILIES = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"pad_token_id": 1, "max_position_embeddings": 66}),
    "electra": (ElectraConfig, {"embedding_size": 16}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["cls", "mean", "mean_top2"])
@pytest.mark.parametrize("in_rows", [False, True])
def test_packed_equals_padded_in_every_family(family, pooling, in_rows, tiny_bert, sample_sentences, monkeypatch):
    """Sentences through `encode`, without padding, against transformers' own padded forward pass."""
    monkeypatch.setattr(SentenceEncoder, "packs_in_rows", in_rows)
    make, more = FAMILIES[family]
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    backbone = AutoModel.from_config(
        make(vocab_size=3000, **small, **{"pad_token_id": 1, "max_position_embeddings": 64, **more})
    ).eval()
    plain = copy.deepcopy(backbone)
    encoder = SentenceEncoder(backbone, load_encoder(tiny_bert).tokenizer, pooling, 30).eval()
    assert encoder.packs
    inputs = encoder.tokenize(sample_sentences[:20])
    with torch.no_grad():
        states = plain(**inputs, output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"][..., None]
    mean = lambda states: (states * mask).sum(1) / mask.sum(1)  # noqa: E731
    expected = {"cls": states[-1][:, 0], "mean": mean(states[-1]), "mean_top2": mean(states[-1] + states[-2]) / 2}
    torch.testing.assert_close(encoder.encode(sample_sentences[:20]), expected[pooling], atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # the backbone itself still is what transformers made
        torch.testing.assert_close(encoder.bert(**inputs).last_hidden_state, states[-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_have_at_least_one_sentence(batch_size, tiny_bert):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; expected at least 1"):
        load_encoder(tiny_bert, "mean").encode(["가"], batch_size=batch_size)


def test_a_sentence_without_a_token_is_named(tiny_bert):
    encoder = load_encoder(tiny_bert, "mean")
    encoder.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"가": 0}, [])))  # no [CLS], no [UNK]
    with pytest.raises(UserError, match="the sentence 'x' holds nothing that this model's tokenizer knows"):
        encoder.encode(["가", "x"])
