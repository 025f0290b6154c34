"""The model of the fake gang: what comes after tokens, and what a cache holds of them."""

import zlib

VOCABULARY = 50


def next_token(token_ids: list[int] | tuple[int, ...], sample: int = 0) -> int:
    """The token after `token_ids`, as any model would choose it: from all of them, and its noise."""
    return zlib.crc32(repr(list(token_ids)).encode(), sample) % VOCABULARY


def extend_signatures(signs: list[int], token_ids: list[int]) -> list[int]:
    """For each position a number for all tokens up to it: what a cache holds there, whoever computed it."""
    sign = signs[-1] if signs else 0
    for position in range(len(signs), len(token_ids)):
        sign = zlib.crc32(repr((position, token_ids[position])).encode(), sign)
        signs.append(sign)
    return signs


def continued(token_ids: list[int], num_tokens: int, sample: int) -> list[int]:
    """The tokens, and those that will come."""
    longer = list(token_ids)
    for _ in range(num_tokens):
        longer.append(next_token(longer, sample))
    return longer
