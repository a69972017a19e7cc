"""Chat templates: the texts that `transformers` renders, and fifty hostile ones that neither escape nor take 50 ms."""

from __future__ import annotations

import time
from typing import Any

import pytest

from modelyard.runtime.chat_template import TemplateError, read, render

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions.\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') \
and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set tool_call = tool_call.function if tool_call.function else tool_call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {%- generation %}{{- " " + (message["content"] or "")|trim + eos_token}}{%- endgeneration %}
    {%- endif %}
{%- endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}
"""

CORNERS = """{#- every construct that the closures know -#}
{% macro item(m, mark='*', n=loop_outer|default(1)) -%} {{ mark * n }}{{ m.role|upper }}:{{ caller(m) if caller else m.content }}
{%- endmacro %}
{% set head %}[{{ messages | map(attribute='role') | unique | join(',') }}]{% endset %}
{{ head | replace('[', '<') }}
{%- for m in messages if m.content is string and m.content|length > 0 recursive_free %}
{% endfor %}""".replace(" recursive_free", "") + """
{%- for m in messages %}
    {%- if loop.index is divisibleby 3 %}{% continue %}{% endif %}
    {%- set text = item(m, '-', 2) %}
    {{ loop.index }}/{{ loop.length }} {{ loop.revindex0 }} {{ loop.cycle('a', 'b') }} {{ text | indent(3) }} {{ loop.previtem.role if loop.previtem }}
    {%- for c in m.content[:3] %}{{ loop.depth }}{{ c }}{% if loop.last %};{% endif %}{% else %}none{% endfor %}
    {%- if loop.index > 6 %}{% break %}{% endif %}
{% endfor %}
{%- call(m) item(messages[0]) %}called {{ m.role }}{% endcall %}
{%- with a = 3, b = [1, 2, 3] %}{{ b[::-1] | join('/') }} {{ a ** 2 // 2 }} {{ a % 2 }} {{ -a }} {{ 7 / 2 }} {{ b + [a] }}{% endwith %}
{%- filter upper %}shout {{ 'é' }}{% endfilter %}
{{ {'a': 1, 'b': [true, none, 1.5]} }} {{ {'b': 1, 'a': {'x': 'é"<'}} | tojson }} {{ [3, 1, 2] | sort | list }} {{ 'a,b' . split(',') }}
{{ nothing }}{{ nothing is defined }}{{ nothing | default('d') }} {{ (1, 2)[0] }} {{ 'x' in 'xyz' }} {{ 3 not in [1] }} {{ 1 < 2 < 3 }}
{{ messages | selectattr('role', 'eq', 'user') | map(attribute='content') | list | length }} {{ '%s-%d' | format('q', 3) }}
{{ messages | rejectattr('name') | list | length }} {{ 'hello world'.title() }} {{ ' a ' | trim ~ 1 ~ none ~ true }} {{ "a\\nb" | indent }}
{{ range(3) | list }} {{ 2.5 | round | int }} {{ '12' | int + 1 }} {{ [1, 2, 3, 4] | batch(3) | list }} {{ messages[0].items() | list | first }}
{{ messages[-1].get('role') }} {{ namespace(x=1).x }} {{ dict(a=1) }} {{ [1,2] | last }} {{ 'abc' | reverse }} {{ {'b': 1, 'a': 2} | dictsort }}
{{ 'x' if false }}{{ not true }} {{ messages | map(attribute='role') | map('length') | list }} {{ [0, 1] | select | list }} {{ 'a' is in ['a'] }} {{ "<" | e }}
"""

TOOL = {"type": "function", "function": {"name": "wetter", "description": "a \"b\"", "parameters": {"type": "object", "properties": {}}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "wetter", "arguments": {"ort": "Köln"}}}]}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " 你好 \n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b {{ 7*7 }}"},
     {"role": "user", "content": "c"}],
    [{"role": "user", "content": "w?"}, CALL, {"role": "tool", "content": "12°"}, {"role": "tool", "content": "13°"},
     {"role": "assistant", "content": "<think>so</think>warm"}],
]  # fmt: skip


@pytest.mark.parametrize("template", [CHATML, QWEN, LLAMA, MISTRAL, GEMMA, CORNERS], ids=["chatml", "qwen", "llama", "mistral", "gemma", "corners"])
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["bare", "tools"])
def test_as_transformers_renders(template: str, tools: list[dict[str, Any]] | None) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    compared = 0
    for chat in CHATS:
        for prompt in (False, True):
            values = {"add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}
            try:
                expected = theirs.render_jinja_template([chat], chat_template=template, tools=tools, **values)[0][0]
            except Exception as error:  # their template refuses these messages: so must ours, in the same words where it says any
                with pytest.raises(TemplateError) as caught:
                    render(template, chat, tools=tools, **values)
                assert "only" not in str(error) or str(error) == caught.value.message
                continue
            assert render(template, chat, tools=tools, **values) == expected
            compared += 1
    assert compared >= 2


def test_spans_of_the_assistant() -> None:
    chat = CHATS[1]
    text, spans = read(MISTRAL).pieces(chat, bos_token="<s>", eos_token="</s>", tools=None)
    assert [text[a:b] for a, b in spans] == [" <think>\nhm\n</think>\n\nb</s>"]


ESCAPES = [
    "{{ messages.__class__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ ''['__class__'] }}", "{{ messages|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}", "{{ [messages]|map(attribute='append')|first }}", "{{ lipsum.__globals__['os'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ joiner.__init__.__globals__ }}", "{{ namespace.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}", "{{ raise_exception.__globals__ }}", "{{ range.call.__globals__ }}", "{{ strftime_now.__self__ }}",
    "{{ '{0.__class__}'.format(messages) }}", "{{ '{0.__class__.__init__.__globals__}'.format_map({'a': 1}) }}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m.scope }}{{ m.macro }}", "{% for x in [1] %}{{ loop.__init__ }}{{ loop.items }}{% endfor %}",
    "{% set ns = namespace() %}{{ ns.values }}{{ ns.__dict__ }}", "{{ dict.mro() }}", "{{ messages.append({}) }}", "{{ messages[0].update(x=1) }}",
    "{{ messages[0].__setitem__('role', 'x') }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends 'x' %}",
    "{{ config }}{{ request }}{{ environment }}{{ context }}{{ caller }}", "{{ ().__class__.__base__ }}", "{{ (1).__class__ }}{{ 1.5.hex }}",
    "{{ messages|sort(attribute='__class__.__name__') }}", "{{ messages|sum(attribute='__class__') }}",
    "{{ messages|selectattr('__class__')|list }}", "{{ messages|tojson(default=range) }}", "{{ '%(a)s' % messages[0] }}",
]  # fmt: skip

GREEDY = [
    "{{ range(10**9)|list }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**9 }}", "{{ [0] * 10**9 }}", "{{ 10**10**10 }}",
    "{{ 9**9**9**9 }}", "{{ 2**4096 }}", "{{ 'a'|center(10**9) }}", "{{ 'a'.ljust(10**9) }}", "{{ 'a\\nb'|indent(10**9) }}",
    "{{ [1]|batch(10**9, 0)|list }}", "{{ '%1000000000d'|format(1) }}", "{{ '%.1000000000f' % 1.0 }}", "{{ '%*d' % (10**9, 1) }}",
    "{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(l=[1, 2]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l=[1, 2]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
    "{% set a = namespace(l=[1]) %}{% set b = namespace(l=[1]) %}{% for i in range(60) %}{% set a.l = [a.l, a.l] %}{% set b.l = [b.l, b.l] %}"
    "{% endfor %}{{ a.l == b.l }}",
    "{% set a = namespace(l=[1]) %}{% for i in range(60) %}{% set a.l = a.l + a.l %}{% endfor %}{{ a.l|length }}",
    "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(12) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{% for i in range(10**6) %}"
    "{{ ns.s.rfind('a' * 20000 + 'b') }}{% endfor %}",
    "{% set ns = namespace(s='ab' * 3000) %}{{ ns.s.replace('', 'x' * 100000) }}", "{{ ('a,' * 100000).split(',')|sort|unique|list }}",
    "{% for i in range(10**5) %}{{ 'x' * 1000 }}{% endfor %}", "{% set x %}{% for i in range(10**6) %}" + "y" * 5000 + "{% endfor %}{% endset %}",
    "{{ ','.join(range(10**9)) }}", "{{ range(10**9)|sum }}", "{{ range(10**9)|map('string')|join }}", "{{ range(10**9)|random }}",
    "{{ range(10**9)|max }}", "{{ range(10**18)|reverse|first }}", "{{ 10**9 in range(0, 10**18, 3)|list }}", "{{ 5|round(-10**9) }}",
    "{{ ('9' * 5000)|int }}", "{{ " + "9" * 5000 + " }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "not " * 5000 + "1 }}",
    "{{ 1" + "+1" * 5000 + " }}", "{% if 1 %}" * 3000 + "{% endif %}" * 3000, "{{ a }}" * 9000, "{# " * 20000, "{{ '" + "\\\\" * 30000,
    "{% raw %}" * 7000, "x" * 70000, "{{ messages|tojson(indent=10**9) }}", "{{ strftime_now('%1000000000d') }}",
    "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}", "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ 'x'.join(['a' * 100000] * 100000) }}", "{% for i in range(10**7) if false %}{% endfor %}", "{{ 'a'|replace('a', 'b' * 10**9) }}",
    "{{ dict(a=1)|items|list * 10**8 }}", "{{ 'a' ~ 'b'|center(10**12) }}", "{{ range(10**30) }}{{ range(10**30)|length }}",
    "{{ messages|map('center', 10**9)|list }}", "{{ ('\\n' * 100000)|indent(1000) }}", "{{ [[[[1] * 100] * 100] * 100] * 100 }}",
    "{{ ('a' * 60000)|wordwrap(1) }}", "{{ ('a b ' * 20000)|truncate(10**9) }}", "{{ ('ab' * 40000).strip('ba' * 40000) }}",
]  # fmt: skip

CHAT = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Hi."}] * 4


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_escapes(source: str) -> None:
    chat = [dict(m) for m in CHAT]
    try:
        text = render(source, chat)
    except TemplateError:
        text = ""
    assert chat == CHAT
    for trace in ("class", "<function", "<built-in", "object at 0x", "module", "root:", "uid=", "lambda", "globals"):
        assert trace not in text


def test_fifty_hostile_templates_are_quick() -> None:
    """Processor time, since other programs run beside the tests; the best of three, since the first one imports and warms."""
    slow, refused = {}, 0
    read(CHATML)  # Jinja is imported
    for source in [*ESCAPES, *GREEDY]:
        times = []
        for _ in range(3):
            read.cache_clear()
            began = time.thread_time()
            try:
                assert len(render(source, CHAT)) < 2_000_000
            except TemplateError:
                refused += 1
            times.append(time.thread_time() - began)
        if min(times) > 0.05:
            slow[source[:80]] = min(times)
    assert len(ESCAPES) + len(GREEDY) >= 50
    assert not slow
    assert refused > 3 * 60


def test_long_conversations_are_not_stopped() -> None:
    chat = [{"role": "user", "content": "Tell me a tale. " * 100}, {"role": "assistant", "content": "<think>x</think>Once. " * 100}] * 400
    assert render(QWEN, chat, add_generation_prompt=True).count("<|im_start|>") == 801


def test_what_is_refused_says_so() -> None:
    for source, words in [
        ("{% for %}", "line 1"), ("{{ x.y.z }}", "'x', which is not defined"), ("{{ raise_exception('no') }}", "no"),
        ("{{ 1 + 'a' }}", "computes 1"), ("{{ 'a'|nonesuch }}", "nonesuch"), ("{% include 'a' %}", "Include"), ("{{ lipsum() }}", "lipsum"),
    ]:  # fmt: skip
        with pytest.raises(TemplateError, match=words.replace("computes 1", "computes int")):
            render(source, CHAT)
    with pytest.raises(TemplateError, match="JSON holds"):
        render(CHATML, [{"role": "user", "content": object()}])
