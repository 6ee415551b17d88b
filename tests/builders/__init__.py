"""What tests are made of: texts, tiny models, requests, reports. Imports no test."""
