"""The demo: real held-out files completed plainly and accelerated, as numbers, a picture and a page."""
