"""The comparison as one HTML file that needs nothing else: no network, no server, no framework.

`_view` turns a `Report` into what the page shows, in Python and with every figure already in
words; the templates lay it out; ``report.js`` only draws, filters and looks up. A content security
policy in the page forbids every request, so that "self-contained" is enforced and not just meant.
"""

from xentx.compare.html._page import render_html, write_html

__all__ = ["render_html", "write_html"]
