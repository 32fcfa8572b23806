"""The policy's prompts and their tokens."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from srpo.policies.prompts import SPACE, make_tokenizer, prompt, tokenise_prompts

TASKS = ["turn on the stove", "put the wine bottle on top of the cabinet"]


def test_prompt_is_openvlas() -> None:
    text = "In: What action should the robot take to turn on the stove?\nOut:"
    assert prompt("Turn on the Stove") == text


def test_tokenizer_is_deterministic_whole_words_and_lossless_elsewhere() -> None:
    one, two = (make_tokenizer(tasks, 700) for tasks in (TASKS, TASKS[::-1]))
    assert one.get_vocab() == two.get_vocab() and len(one) <= 700
    assert one.tokenize(prompt(TASKS[1]))[9:12] == ["Ġput", "Ġthe", "Ġwine"]
    unseen = "fetch grüne Äpfel №7"
    assert one.decode(one(unseen)["input_ids"]) == unseen


def test_a_llama_prompt_ends_in_its_lone_space() -> None:
    """Without our own token it is the vocabulary's `▁`, and a prompt that ends in it gets no second one."""
    vocabulary = {"<pad>": 0, "▁": 7} | {piece: 8 + k for k, piece in enumerate("InatoskhrbueOW:?.\n")}
    model = models.WordLevel(vocabulary, unk_token="<pad>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="<pad>")
    ids, _ = tokenise_prompts(tokenizer, ["x"])
    assert ids.tolist() == [[0, 7]]


def test_prompts_are_padded_left_and_end_in_the_space_token() -> None:
    tokenizer = make_tokenizer(TASKS, 700)
    ids, mask = tokenise_prompts(tokenizer, TASKS)
    assert (ids[:, -1] == tokenizer.convert_tokens_to_ids(SPACE)).all()
    assert mask[1].all() and not mask[0, 0] and mask[0, -1]
    lengths = mask.sum(1).tolist()
    for row, length, task in zip(ids, lengths, TASKS, strict=True):
        assert tokenizer.decode(row[len(row) - length : -1]) == prompt(task)
