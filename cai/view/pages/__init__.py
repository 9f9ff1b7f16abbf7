"""The pages, one module each: a function that collects the page's tree, and nothing about HTML."""
