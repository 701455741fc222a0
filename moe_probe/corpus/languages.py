"""Which language a file is written in: a programming language from its suffix, a natural one from its folder's name.

It does not look into files.
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

_FOLDERS = {
    # ISO 639-1, and the English name.
    "ar": "arabic",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "he": "hebrew",
    "hi": "hindi",
    "hu": "hungarian",
    "id": "indonesian",
    "it": "italian",
    "ja": "japanese",
    "ko": "korean",
    "nl": "dutch",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
    "th": "thai",
    "tr": "turkish",
    "uk": "ukrainian",
    "vi": "vietnamese",
    "zh": "chinese",
}
_LANGUAGE_OF_NAME = {name: code for code, name in _FOLDERS.items()}

CODE_LANGUAGES = frozenset(_SUFFIXES)
"""The programming languages that a suffix can tell."""


def language_of_suffix(suffix: str) -> str | None:
    """Return the programming language of a file with this suffix, or None.

    Example:
        >>> language_of_suffix(".py"), language_of_suffix(".txt")
        ('python', None)
    """
    return _LANGUAGE_OF_SUFFIX.get(suffix.lower())


def language_of_folder(name: str) -> str | None:
    """Return the code of the natural language that a folder is named after, in English or by its code, or None.

    Example:
        >>> language_of_folder("French"), language_of_folder("de"), language_of_folder("science")
        ('fr', 'de', None)
    """
    name = name.lower()
    return name if name in _FOLDERS else _LANGUAGE_OF_NAME.get(name)
