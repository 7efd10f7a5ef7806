"""The HTML of a report, parsed."""

from html.parser import HTMLParser


class PageReader(HTMLParser):
    """Tags that are open at the end, identifiers, links out of the page, and the text."""

    VOID = {"meta", "img", "br", "input", "link", "hr"}

    def __init__(self, path):
        super().__init__()
        self.open, self.ids, self.sources, self.text, self.tags = [], [], [], "", []
        self.path, self.html = path, path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                self.sources.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
