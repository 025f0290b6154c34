"""The text on which the small tokenizer is trained: what prompts, questions and thoughts are made of.

Only boilerplate, so that merges shorten what is the same in every prompt; what has to be read from a
picture stays in small pieces, most of it single characters.
"""

from __future__ import annotations

# How often a prompt holds each: the system turn of tools, a JSON schema, a question.
_TOOLS = """\
system
user
assistant
tool_response
# Tools

You have access to the following functions in JSONSchema format:

<tools>
{"type": "function", "function": {"name": "zoom", "description": "Look closer", "parameters": {"type": \
"object", "properties": {"box": {"type": "array"}}, "required": ["box"]}}}
{"type": "function", "function": {"name": "search", "description": "Look up what the picture does not say", \
"parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}}
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...>
...
</function> block must be nested within <tool_call> XML tags
- Required parameters MUST be specified
</IMPORTANT>
Reasoning: low
Reasoning: high
<function=zoom>
<parameter=box>
<function=search>
<parameter=query>
"""
_SCHEMAS = """\
Answer as JSON: {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
Reply with JSON that follows this schema: {"type": "object", "properties": {"date": {"type": "string"}}, \
"required": ["date"]}
Extract the data as JSON. Schema: {"type": "object", "properties": {"value": {"type": "integer"}, "row": \
{"type": "string"}}, "required": ["value", "row"]}
Fill in this schema: {"type": "object", "properties": {"price": {"type": "string"}, "item": {"type": \
"string"}}, "required": ["price", "item"]}
{"point": [, ], "box": [, , , ]}
{"row": "", "value": }
"""
_QUESTIONS = """\
What does it say? What is the value of the first line? Read the text. What is written here?
What does the second line say? What comes after this? What is the total? What is the date?
What is the price? What does it cost? How much is the total? Which date is on it?
What does the row say below the column? The row says this below that. The line says that.
Where is the button? Where is the tab? Where do I tap to open it? Click on it. Press the button.
What is the third title in the list? The list begins with it. It is the fourth row of the list.
The title bar says it. Read the line below it. What is the highest bar? Which bar is the lowest?
What is the difference between them? The bar ends at the value. Which point is the highest in the chart?
What is the value of the bar? Which bar is the darker red? Which spot is the brightest in the scan?
Sort these numbers. Sort these words. Put in ascending order. Put in alphabetical order. Copy this text.
Write exactly this. Repeat. Calculate. The text stays as it is. The first is that. It stands alone.
Read the red card, the blue card and the green card. What is on the yellow card? The orange and the \
purple card.
It is too small to read. It cannot be read. The card is too small to read. The picture does not say the price.
The colour is red, green, blue, black, white, grey. The weight, the size, the year, the owner.
"""


def training_texts() -> list[str]:
    """The texts, in a fixed order."""
    return [_TOOLS] * 3 + [_SCHEMAS] * 3 + [_QUESTIONS] * 2
