using Xunit;
namespace Ses.Tests;
public class SmokeTests { [Fact] public void One() => Assert.Equal(2, Environment.NewLine.Length + 1); }
