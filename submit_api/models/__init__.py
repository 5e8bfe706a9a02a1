"""HTTP bodies, as pydantic models: what may come in, what goes out, and what OpenAPI shows of both."""
