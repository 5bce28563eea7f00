"""profile.proto as the package protobuf reads it: a decoder that shares nothing with the encoder."""

from __future__ import annotations

import functools
import gzip
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# name -> fields (name, number, type), from the published profile.proto; * stands for repeated.
SCHEMA = {
    "ValueType": "type 1 int64, unit 2 int64",
    "Label": "key 1 int64, str 2 int64, num 3 int64, num_unit 4 int64",
    "Sample": "location_id 1 *uint64, value 2 *int64, label 3 *Label",
    "Mapping": "id 1 uint64, memory_start 2 uint64, memory_limit 3 uint64, file_offset 4 uint64, filename 5 int64, "
    "build_id 6 int64, has_functions 7 bool, has_filenames 8 bool, has_line_numbers 9 bool, has_inline_frames 10 bool",
    "Line": "function_id 1 uint64, line 2 int64, column 3 int64",
    "Location": "id 1 uint64, mapping_id 2 uint64, address 3 uint64, line 4 *Line, is_folded 5 bool",
    "Function": "id 1 uint64, name 2 int64, system_name 3 int64, filename 4 int64, start_line 5 int64",
    "Profile": "sample_type 1 *ValueType, sample 2 *Sample, mapping 3 *Mapping, location 4 *Location, "
    "function 5 *Function, string_table 6 *string, drop_frames 7 int64, keep_frames 8 int64, time_nanos 9 int64, "
    "duration_nanos 10 int64, period_type 11 ValueType, period 12 int64, comment 13 *int64, "
    "default_sample_type 14 int64",
}


@functools.cache
def message() -> Any:
    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {name: getattr(field_type, f"TYPE_{name.upper()}") for name in ("int64", "uint64", "bool", "string")}
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="perftools.profiles", syntax="proto3")
    for name, fields in SCHEMA.items():
        described = file.message_type.add(name=name)
        for field in fields.split(", "):
            label, number, kind = field.split()
            added = described.field.add(name=label, number=int(number))
            added.label = field_type.LABEL_REPEATED if kind.startswith("*") else field_type.LABEL_OPTIONAL
            if (scalar := scalars.get(kind.lstrip("*"))) is not None:
                added.type = scalar
            else:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".perftools.profiles.{kind.lstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("perftools.profiles.Profile"))


def decode(content: bytes) -> tuple[Any, list[tuple[list[tuple[str, str, int]], dict[str, int], dict[str, str]]]]:
    """The message, and of each sample: stack of (function, file, line), values by type, labels."""
    profile = message()()
    profile.ParseFromString(gzip.decompress(content))
    text = list(profile.string_table)
    assert text[0] == ""
    functions = {function.id: function for function in profile.function}
    locations = {location.id: location for location in profile.location}
    mappings = {mapping.id for mapping in profile.mapping}
    assert 0 not in functions.keys() | locations.keys() | mappings
    assert len(functions) == len(profile.function)
    assert len(locations) == len(profile.location)
    samples = []
    for sample in profile.sample:
        stack = []
        for number in sample.location_id:
            (line,) = locations[number].line
            assert locations[number].mapping_id in mappings
            function = functions[line.function_id]
            stack.append((text[function.name], text[function.filename], line.line))
        values = {text[kind.type]: value for kind, value in zip(profile.sample_type, sample.value, strict=True)}
        samples.append((stack, values, {text[label.key]: text[label.str] for label in sample.label}))
    return profile, samples
