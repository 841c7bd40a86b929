"""Measuring what the method costs against a plain implementation of it, in one run on one machine."""
