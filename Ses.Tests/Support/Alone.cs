using Xunit;

namespace Ses.Tests.Support;

/// <summary>
/// The collection of tests that take the whole machine: none of them runs beside another test.
/// </summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class Alone
{
    public const string Name = "alone";
}
