"""Pictures and the HTML report of an output."""
