"""The text on which the small tokenizer is trained: a little of everything it will meet."""

# ruff: noqa: RUF001 - letters of many scripts are the point
from __future__ import annotations

_PROSE = """\
The river starts in the hills as a thin line of water between stones. Further down it is joined by other
streams, and after a hundred kilometres it carries boats. People have lived along it for thousands of years,
because water brings fish, and fields, and a road that nobody has to build. When the snow melts in spring
the river rises; the meadows on both sides are under water for a week or two, and then the grass is greener
than anywhere else. In summer the children swim in it. In autumn there is fog in the morning, and by noon
the sun has taken it away. In winter the edges freeze, but the middle of the river never stops moving. A
question is a good place to start. What do we know, what do we not know, and what would we have to see to
change our mind? First we look at the picture as a whole, then at each part of it. The image shows a table
with two cups, a plate and an open book. The text on the left says where the train goes; the number on the
right is the time when it leaves. If the light is bad, we look again, closer. If two answers are possible,
we say so. There is a difference between being sure and being right, and there is a cost to each mistake. So
we write down every step: what was given, what was found, what follows from it, and what remains open. That
is the whole method. She told him that the machine was working again, that it had only been waiting for
someone to turn it on. He did not believe her at first. But the lights were green, the numbers on the screen
went up one after another, and after some minutes the first page came out, still warm. They read it together
without saying a word. How can I help you today? I would like to know how this works. Please explain it in a
few short sentences, and give an example. Thank you, that is very helpful. Could you also tell me which one
is better, and why? Let me think about that. The answer is yes, but only under certain conditions. Here is a
list of things to remember:
"""

_OTHER_LANGUAGES = """\
Der Fluss beginnt in den Bergen und fließt durch das Land bis zum Meer.
Über die Brücke gehen jeden Tag viele Menschen.
La rivière commence dans les montagnes et traverse la vallée. Où est la gare, et à quelle heure part le train?
El río nace en las montañas y llega al mar después de mil kilómetros. ¿Qué hora es? Son las tres de la mañana.
O rio começa nas montanhas. Il fiume nasce tra le montagne e arriva al mare. Rzeka zaczyna się w górach.
Река начинается в горах и течёт через всю страну к морю. Что это такое? Это очень просто.
河流从山里开始，穿过整个国家，最后流入大海。请问这张图片里有什么？图片里有一张桌子和两个杯子。
川は山から始まり、海へ流れます。この写真には何が写っていますか。
강은 산에서 시작하여 바다로 흐릅니다. النهر يبدأ في الجبال. नदी पहाड़ों से शुरू होती है।
Good morning 🙂 👍 → ← ≤ ≥ × ± … “quoted” ‘single’ — – • € £ ° ½
"""

_CODE = """\
def read_lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\\n") for line in file if line.strip()]

class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def increment(self, amount: int = 1) -> int:
        if amount < 0:
            raise ValueError(f"amount must not be negative: {amount}")
        self.value += amount
        return self.value

for (let i = 0; i < items.length; i++) { if (items[i] !== null) { console.log(items[i].name); } }
SELECT name, count(*) FROM users WHERE created_at > '2024-01-01' GROUP BY name ORDER BY name;
#include <stdio.h>
int main(void) { printf("%d\\n", 42); return 0; }
{"type": "function", "function": {"name": "get_weather", "description": "Get the weather of a city",
 "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
 "required": ["city"]}}}
<function=get_weather>
<parameter=city>
Paris
</parameter>
<parameter=days>
3
</parameter>
</function>
"""

_CHAT = """\
system
You are a helpful assistant. You have access to the following functions in JSONSchema format:
If you choose to call a function ONLY reply in the following format with NO suffix:
Reminder: function calls MUST follow the specified format; required parameters MUST be specified.
Reasoning: low
Reasoning: medium
Reasoning: high
user
What is shown in this image? Describe the picture in detail.
assistant
The user wants a description of the image. Let me look at it first, and then answer the question.
The image shows a chart with three lines. The blue line rises, the red line falls, the green line stays.
tool_response
{"temperature": 21.5, "unit": "celsius", "sky": "clear", "wind": {"speed": 12, "direction": "north"}}
user
Hello! Hi there. Thanks! What about tomorrow? Weather in Paris? Compare the two pictures, please.
assistant
Tomorrow will be a little colder, about 18 degrees, with some rain in the afternoon.
"""


def training_texts() -> list[str]:
    """The texts, in a fixed order; arithmetic and lists are generated."""
    sums = [f"{a} + {b} = {a + b}, {a} * {b} = {a * b}" for a in range(1, 40, 3) for b in range(2, 30, 7)]
    lists = [f"{number}. Step {number} of 12: step by step\n" for number in range(1, 13)]
    return [_PROSE, _OTHER_LANGUAGES, _CODE, _CHAT, *sums, *lists]
