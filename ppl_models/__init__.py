"""p(x, z): one file per model family, a plain program written once."""
