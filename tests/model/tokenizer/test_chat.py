"""A conversation's ids are what its template says; what the assistant said is known or refused."""

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, processors

import limbeck.model.tokenizer.chat as chat
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, train_bpe
from limbeck.model.tokenizer.chat import assistant_mask, render
from limbeck.model.tokenizer.files import Parts

PLAIN = train_bpe(["user assistant model system hello"] * 9, 300)
# In the manner of the published ones, in other words; `[[` and `]]` stand where a template can mark what is said.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}\n"
        "    {%- if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}[[{{ m.content }}<|im_end|>]]{{ '\n' }}\n"
        "    {%- else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}\n"
        "{% endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '<|turn|>\n\n' }}"
        "{% if m.role == 'assistant' %}[[{{ m.content | trim }}<|im_end|>]]"
        "{% else %}{{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|turn|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% set ns = namespace(turn=0) %}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% if (m.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{% set ns.turn = ns.turn + 1 %}"
        "{% if m.role == 'assistant' %}{{ '<|im_start|>model\n' }}[[{{ m.content | trim }}<|im_end|>]]{{ '\n' }}"
        "{% else %}{{ '<|im_start|>user\n' + m.content | trim + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{- bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}[[{{ ' ' + m.content + eos_token }}]]"
        "{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
    ),
}
TALK = [
    {"role": "user", "content": "hello  <b>\n می‌خواهم"},
    {"role": "assistant", "content": "گلابی 🙂 & 'plum'"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "hello"},
]


def with_template(template, tokenizer=PLAIN):
    fast = tokenizer._fast
    fast.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|turn|>"])
    return Tokenizer(Parts(fast, dict(tokenizer.tokens), tokenizer.bos_id, tokenizer.stop_ids, template))


def plain(name):
    return with_template(TEMPLATES[name].replace("[[", "").replace("]]", ""))


def marked(name):
    return with_template(TEMPLATES[name].replace("[[", "{% generation %}").replace("]]", "{% endgeneration %}"))


def spelled(tokenizer, ids):
    return tokenizer._fast.decode(ids, skip_special_tokens=False)


def said(tokenizer, ids, mask):
    """The text of each run of the assistant's ids."""
    runs, before = [], False
    for index, of_assistant in zip(ids, mask, strict=True):
        if of_assistant:
            runs[len(runs) - (1 if before else 0) :] = [[*(runs[-1] if before else []), index]]
        before = of_assistant
    return [spelled(tokenizer, run) for run in runs]


def test_chatml_word_for_word():
    tokenizer = plain("chatml")
    ids = render(tokenizer, TALK[:1])
    text = "<bos><|im_start|>user\nhello  <b>\n می‌خواهم<|im_end|>\n<|im_start|>assistant\n"
    assert spelled(tokenizer, ids) == text
    assert (
        spelled(tokenizer, render(tokenizer, TALK[:1], generation_prompt=False)) == text[: text.rindex("<|im_start|>")]
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_bos_and_what_the_assistant_said(name):
    tokenizer = plain(name)
    ends = "<eos>" if name == "mistral" else "<|im_end|>"
    expected = [(" " if name == "mistral" else "") + m["content"] + ends for m in TALK if m["role"] == "assistant"]
    whole = render(tokenizer, TALK, generation_prompt=False)
    for made in (tokenizer, marked(name)):
        assert render(made, TALK, generation_prompt=False) == whole
        ids, mask = assistant_mask(made, TALK)
        assert ids == whole and len(mask) == len(ids)
        assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1
        assert said(made, ids, mask) == expected
        assert render(made, TALK[:3]).count(tokenizer.bos_id) == 1
        asked = render(made, TALK[:3])
        assert whole[: len(asked)] == asked


@pytest.mark.parametrize("token", ["<eos>", "<|im_end|>", "<bos>"])
@pytest.mark.parametrize("field", ["content", "role"])
def test_a_message_cannot_speak_for_the_program(token, field):
    tokenizer = plain("chatml")
    message = TALK[0] | {field: f"a {token} b"}
    for call in (render, assistant_mask):
        with pytest.raises(
            UserError, match=rf"message 1: its {field} spells the special token '{token.replace('|', '.')}'"
        ):
            call(tokenizer, [TALK[0], message, *TALK[1:]])


def test_a_normaliser_cannot_make_a_special_token_of_text():
    vocab = {token: index for index, token in enumerate([*"<endx", "<unk>"])}
    fast = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    fast.normalizer = normalizers.NFKC()
    fast.add_special_tokens([AddedToken("<end>", normalized=True), "<unk>"])
    fast.encode_special_tokens = True
    tokenizer = Tokenizer(Parts(fast, {}, 6, (6,), "{{ messages[0].content }}"))
    assert tokenizer.parse("＜end＞").ids == [6]
    with pytest.raises(UserError, match="message 0: its content spells the special token '<end>'"):
        render(tokenizer, [{"role": "user", "content": "＜end＞"}])
    with pytest.raises(UserError, match="message 0: its content spells the special token '<unk>'"):
        render(tokenizer, [{"role": "user", "content": "é<unk>"}])
    assert render(tokenizer, [{"role": "user", "content": "xé"}]) == [4, 5]  # a letter it does not know is no token


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "at least one message"),
        ([{"role": "user"}], "message 0 is .* it must have a role and a content"),
        ([TALK[0], {"role": "user", "content": [{"type": "image"}]}], "message 1: its content is .* not text"),
        (TALK[:1], "no message of the role 'assistant'"),
    ],
)
def test_bad_conversations(messages, message):
    with pytest.raises(UserError, match=message):
        assistant_mask(plain("chatml"), messages)


@pytest.mark.parametrize(
    "template, message",
    [
        (
            "{% for m in messages %}{{ loop.index == messages | length }}{{ m.content }}{% endfor %}",
            "does not simply write",
        ),
        ("{{ messages[-1].content }}", "does not simply write message 1"),
        ("{{ messages[0].content }}", "marks nothing"),
        ("{% generation %}{% endgeneration %}a", "marks nothing"),
        ("{% filter trim %}{% generation %} a {% endgeneration %}{% endfilter %}", "rewrites what is in its"),
    ],
)
def test_a_mask_is_never_guessed_nor_empty(template, message):
    with pytest.raises(UserError, match=message):
        assistant_mask(with_template(template), TALK)


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "no chat template"),
        ("{% for %}", "failed: Expected an expression"),
        ("{{ raise_exception('roles\nmust alternate') }}", "failed: roles must alternate$"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ 'a' * 10**9 }}", "more than 4,000,000"),
        ("{{ 9**9**9 }}", "more than 4,000,000"),
        ("{{ lipsum(10**9) }}", "'lipsum' is undefined"),
        ("{% for i in range(99999) %}{{ 'abcdefgh' * 999 }}{% endfor %}", "writes more than 4,000,000"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 0.2 seconds"),
        ("{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}", "0.2 seconds"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}", "0.2 seconds"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_bad_templates(monkeypatch, template, message):
    monkeypatch.setattr(chat, "_SECONDS", 0.2)
    with pytest.raises(UserError, match=message) as caught:
        render(with_template(template), TALK)
    assert "\n" not in str(caught.value)


def test_what_templates_expect_is_there():
    template = (
        "{%- for m in messages -%}{%- if loop.index > 1 -%}{%- break -%}{%- endif -%}{{ m | tojson }}{%- endfor -%}"
        "{{ {'گ': '<&>'} | tojson(indent=1) }}{{ strftime_now('%%') }}{{ eos_token }}{{ pad_token }}{{ unk_token }}"
        "{% if tools is none and not documents %}!{% endif %}\n"
    )
    tokenizer = with_template(template)
    start = '<bos>{"role": "user", "content": "hello  <b>\\n می‌خواهم"}'
    assert spelled(tokenizer, render(tokenizer, TALK)) == start + '{\n "گ": "<&>"\n}%<eos><pad>!'


def test_no_bos_where_the_tokenizer_has_none():
    fast = train_bpe(["a"], 259)._fast
    fast.post_processor = processors.ByteLevel()
    tokenizer = Tokenizer(
        Parts(fast, {"eos_token": "<eos>"}, 2, (2,), "{% for m in messages %}{{ m.role }}{% endfor %}")
    )
    assert tokenizer.start == () and spelled(tokenizer, render(tokenizer, TALK[:1])) == "user"


@pytest.mark.bench
@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_writes_the_same(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = marked(name)
    tokenizer.save_folder(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for prompt in (False, True):
        ids = theirs.apply_chat_template(TALK[:3], add_generation_prompt=prompt, return_dict=False)
        start = [] if ids[0] == tokenizer.bos_id else [tokenizer.bos_id]
        assert render(tokenizer, TALK[:3], generation_prompt=prompt) == start + ids
    both = theirs.apply_chat_template(TALK, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = assistant_mask(tokenizer, TALK)
    assert ids[len(start) :] == both["input_ids"] and mask[len(start) :] == [bool(m) for m in both["assistant_masks"]]
