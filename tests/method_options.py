"""The table of methods and options in docs/pytorch.md: ``python tests/method_options.py``."""

from inspect import Parameter
from typing import Any

from vpt_dense.plain import methods


def parts_of(name: str) -> list[dict]:
    settings = methods.resolve(name, {})
    single = [settings[key] for key in ('prompt', 'image_prompt') if settings.get(key)]
    return [*single, *settings.get('adapters', ())]


def options(name: str) -> dict[str, Any]:
    """The options of a method with their usual values; not those that two of its parts have."""
    found = [
        (option, part.get(option, parameter.default)) for part in parts_of(name)
        for option, parameter in methods.arguments(part['type']).items()]
    taken = [option for option, _ in found]
    assert Parameter.empty not in dict(found).values()
    return {option: value for option, value in found if taken.count(option) == 1}


def rows() -> list[str]:
    """A line a method: its name, what it adds or trains, its options."""
    lines = ['| method | adds, or trains | options |', '| --- | --- | --- |']
    for name in methods.names():
        does = [part['type'].rpartition('.')[2] for part in parts_of(name)]
        patterns = methods.resolve(name, {}).get('trainable') or ()
        does += [f'`{pattern}`'.replace('|', r'\|') for pattern in patterns
                 if not pattern.startswith(('^prompt', '^adapters', '^image_prompt'))]  # fmt: skip
        told = ', '.join(f'`{key}={value!r}`' for key, value in options(name).items())
        lines.append(f'| `{name}` | {", ".join(does) or "nothing"} | {told} |')
    return lines


if __name__ == '__main__':
    print('\n'.join(rows()))
