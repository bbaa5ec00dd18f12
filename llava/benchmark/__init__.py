"""Measures the other packages of llava and reports on them; none of them imports this one."""
