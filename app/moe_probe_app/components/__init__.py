"""What several pages show or need: the sidebar, the token view, plain text, the trace that runs beside the pages."""
