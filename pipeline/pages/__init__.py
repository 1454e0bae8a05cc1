"""What the HTML pages of a run share: template, style, script and the look of figures."""
