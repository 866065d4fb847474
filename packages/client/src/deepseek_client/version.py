"""The version of the distribution; the build reads it from here, so that no import has to read package metadata."""

VERSION = "0.1.0"
