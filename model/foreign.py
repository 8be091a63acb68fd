"""Folders of sentence-transformers: what they say of pooling and length."""

from data.errors import UserError
from data.files import read_json


def sentence_transformers_settings(folder):
    """({"pooling", "max_len", "normalize"}, folder of the transformer) of a sentence-transformers folder.

    Raises:
        UserError: it does something after or beside the transformer that we do not.
    """
    modules = read_json(folder / "modules.json", kind=list)
    try:
        kinds = {module["type"].split(".")[-1]: folder / module["path"] for module in modules}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / 'modules.json'}: expected objects with type and path") from None
    if list(kinds) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(f"{folder}: has the modules {', '.join(kinds)}; expected Transformer, Pooling, maybe Normalize")
    config = read_json(kinds["Pooling"] / "config.json")
    mode = config.get("pooling_mode")  # one string since version 5.5, one boolean a mode before
    if mode is None:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        mode = names.get(on[0]) if len(on) == 1 else None
    if mode not in ("cls", "mean"):
        raise UserError(f"{folder}: its pooling is not one of ours (cls or mean): {config}")
    more = [folder / "config_sentence_transformers.json", kinds["Transformer"] / "sentence_bert_config.json"]
    more = {key: value for path in more if path.is_file() for key, value in read_json(path).items()}
    for key in ("default_prompt_name", "truncate_dim", "do_lower_case"):
        if more.get(key):
            raise UserError(f"{folder}: is used with {key} {more[key]!r}, which is not done here")
    settings = {"pooling": mode, "normalize": "Normalize" in kinds}
    # the length: in a file of its own, or as the tokenizer's, where a huge number means none
    for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        path = kinds["Transformer"] / file
        length = read_json(path).get(key) if path.is_file() else None
        if isinstance(length, int) and 0 < length < 1_000_000:
            settings["max_len"] = length
            break
    return settings, kinds["Transformer"]
