"""XML files of annotations, in the encodings that they declare and without what can do harm."""

import codecs
import re
from typing import Any

from cam_pipeline.errors import DataError, LibraryMissing

MULTIBYTE = {
    name: codec
    for codec, names in {
        "gb18030": "gb2312 gb_2312-80 gbk x-gbk cp936 gb18030",
        "hz": "hz-gb-2312",
        "cp950": "big5 cp950",
        "big5hkscs": "big5-hkscs",
        "cp932": "shift_jis shift-jis sjis x-sjis ms932 windows-31j cp932",
        "euc_jp": "euc-jp",
        "iso2022_jp": "iso-2022-jp",
        "cp949": "euc-kr ks_c_5601-1987 cp949",
    }.items()
    for name in names.split()
}
"""Encodings, as XML declares them, that its parser does not know, and what Python calls them or a larger set."""


def parsed_xml(content: bytes, where: str) -> Any:
    """The root element (of xml.etree) of an XML file. Raises DataError, which begins with `where`, if it is none."""
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import ParseError, fromstring
    except ImportError as error:
        raise LibraryMissing(
            f"defusedxml reads the XML annotations and cannot be imported ({error}). Install it: pip install defusedxml"
        ) from error
    try:
        return fromstring(_decoded(content), forbid_dtd=True)
    except DefusedXmlException:  # entities could grow to gigabytes; VOC files have none
        raise DataError(f"{where}: it declares a document type or entities, which are not read; delete them") from None
    except UnicodeDecodeError as error:
        raise DataError(not_decoded(where, error)) from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{where} cannot be read as XML ({error}); save it again as UTF-8, or replace it") from error


def not_decoded(where: object, error: UnicodeDecodeError) -> str:
    """The message about bytes that are not in the encoding of their file: line, byte, and what to do."""
    lines = error.object[: error.start].split(b"\n")
    place = f"{where}, line {len(lines)}: byte {len(lines[-1]) + 1} (0x{error.object[error.start]:02x})"
    return f"{place} is not {error.encoding.upper()}; save the file as UTF-8"


def _decoded(content: bytes) -> bytes | str:
    """An XML file's content: as text if it declares an encoding that the parser does not know, or UTF-8 or none."""
    declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["']""", content[:200])
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content
    if content.startswith(codecs.BOM_UTF8) or encoding in ("utf-8", "utf8"):
        return content.decode("utf-8-sig")
    return content.decode(MULTIBYTE[encoding]) if encoding in MULTIBYTE else content
