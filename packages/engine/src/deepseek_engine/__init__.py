"""deepseek_engine"""
