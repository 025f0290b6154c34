"""The public interface as plain data. At a release: `python -m tests.cluster.front.snapshot`.

It writes `inference.snapshot.json` beside itself, what the next versions are compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from protos.fluyt.v1 import inference_pb2

SNAPSHOT = Path(__file__).with_name("inference.snapshot.json")


def interface() -> dict[str, Any]:
    """Every message field, enum value and method by name, with all that the wire depends on."""
    file = descriptor_pb2.FileDescriptorProto()
    inference_pb2.DESCRIPTOR.CopyToProto(file)
    entries: dict[str, Any] = {}
    for message in file.message_type:
        _add_message(entries, message, message.name)
    for enum in file.enum_type:
        entries |= {f"{enum.name}.{value.name}": value.number for value in enum.value}
    for service in file.service:
        for method in service.method:
            entries[f"{service.name}.{method.name}"] = [
                method.input_type,
                method.output_type,
                method.client_streaming,
                method.server_streaming,
            ]
    return entries


def _add_message(entries: dict[str, Any], message: Any, path: str) -> None:
    oneofs = [oneof.name for oneof in message.oneof_decl]
    for field in message.field:
        oneof = oneofs[field.oneof_index] if field.HasField("oneof_index") else ""
        entries[f"{path}.{field.name}"] = [field.number, field.type, field.type_name, field.label, oneof]
    for nested in message.nested_type:
        _add_message(entries, nested, f"{path}.{nested.name}")


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(interface(), indent=1, sort_keys=True) + "\n")
