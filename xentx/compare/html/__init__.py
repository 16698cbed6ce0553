"""The comparison as one HTML file, which needs no network, server or framework.

`_view` computes the contents from a `Report`, with all numbers as text. The templates lay them out.
``report.js`` draws the charts and filters the tables. A content security policy in the page forbids
all requests.
"""

from xentx.compare.html._page import render_html, write_html

__all__ = ["render_html", "write_html"]
