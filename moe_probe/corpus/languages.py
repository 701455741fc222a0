"""Which programming language a file is written in, from its name's suffix.

It does not know natural languages: nothing in a file's name tells them.
"""

from __future__ import annotations

_SUFFIXES = {
    "bash": ".bash .sh .zsh",
    "c": ".c .h",
    "clojure": ".clj",
    "cpp": ".cc .cpp .cxx .hh .hpp .hxx .cu .cuh",
    "csharp": ".cs",
    "css": ".css",
    "dart": ".dart",
    "elixir": ".ex .exs",
    "erlang": ".erl",
    "fortran": ".f90 .f95",
    "go": ".go",
    "haskell": ".hs",
    "html": ".htm .html",
    "ini": ".cfg .ini",
    "java": ".java",
    "javascript": ".js .jsx .mjs",
    "json": ".json",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "lua": ".lua",
    "make": ".mk",
    "ocaml": ".ml .mli",
    "perl": ".pl .pm",
    "php": ".php",
    "powershell": ".ps1",
    "python": ".py .pyi .pyx",
    "r": ".r",
    "ruby": ".rb",
    "rust": ".rs",
    "scala": ".scala",
    "scheme": ".scm",
    "sql": ".sql",
    "swift": ".swift",
    "toml": ".toml",
    "typescript": ".ts .tsx",
    "xml": ".svg .xml .xsl",
    "yaml": ".yaml .yml",
    "zig": ".zig",
}
_LANGUAGE_OF_SUFFIX = {suffix: language for language, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}

CODE_LANGUAGES = frozenset(_SUFFIXES)
"""The programming languages that a suffix can tell."""


def language_of_suffix(suffix: str) -> str | None:
    """Return the programming language of a file with this suffix, or None.

    Example:
        >>> language_of_suffix(".py"), language_of_suffix(".txt")
        ('python', None)
    """
    return _LANGUAGE_OF_SUFFIX.get(suffix.lower())
