"""The special tokens: the punctuation of documents, conversations and tool calls.

They stand outside BPE. No text is ever encoded to one of them, whatever it spells, so content cannot forge a
turn; only `conversation.py` and the data pipeline write them, by their ids.
"""

BOS = "<|bos|>"  # opens every document and every conversation
SYSTEM = "<|system|>"  # these four open a turn
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
TOOL = "<|tool|>"
END = "<|end|>"  # closes a turn: what generation stops at
CALL = "<|call|>"  # stands on both sides of a tool call inside an assistant turn
RESULT = "<|result|>"  # stands on both sides of the result that is put in after it

SPECIAL_TOKENS = (BOS, SYSTEM, USER, ASSISTANT, TOOL, END, CALL, RESULT)
