"""`analyze`: how well energy and every other detector tell forgotten from retained questions, as tables and as a page."""
