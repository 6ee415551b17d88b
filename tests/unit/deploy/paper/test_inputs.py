"""Mail as text: what tells spam by its words, and not by its headers."""

from __future__ import annotations

from deploy.paper.inputs import MAIL_CHARACTERS, mail_text

HEADERS = "From: a@b.c\nReceived: from spam.example\nX-Spam: YES\nSubject: Hello\n"


def test_headers_but_the_subject_are_left_out() -> None:
    assert mail_text(f"{HEADERS}\nDear friend,\n\tbuy now") == "Hello Dear friend, buy now"


def test_of_several_parts_the_plain_one_is_read() -> None:
    body = (
        f'{HEADERS}Content-Type: multipart/alternative; boundary="x"\n\n'
        "--x\nContent-Type: text/html\n\n<p>page</p>\n--x\nContent-Type: text/plain\n\nplain words\n--x--\n"
    )
    assert mail_text(body) == "Hello plain words"


def test_a_page_is_read_without_tags_scripts_and_styles() -> None:
    body = f"{HEADERS}Content-Type: text/html\n\n<style>p {{}}</style><p>buy &amp; sell</p><script>x()</script>"
    assert mail_text(body) == "Hello buy & sell"


def test_long_mails_are_cut_and_broken_ones_are_no_error() -> None:
    assert len(mail_text(f"{HEADERS}\n{'word ' * 500}")) == MAIL_CHARACTERS
    assert mail_text("") == ""
    assert mail_text("Subject: a\nContent-Transfer-Encoding: base64\n\n%%%").startswith("a")
