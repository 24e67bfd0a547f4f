using Xunit;
using Xunit.Abstractions;

[assembly: TestCollectionOrderer("Ses.Tests.Support.LongestFirst", "Ses.Tests")]

namespace Ses.Tests.Support;

/// <summary>
/// Starts the classes that take minutes before all others, so that none of them is still running at the end
/// while the other processors have nothing left to do.
/// </summary>
public sealed class LongestFirst : ITestCollectionOrderer
{
    private static readonly string[] Longest =
    [
        nameof(PackageEndToEndTests), nameof(PrometheusEndToEndTests), nameof(PrometheusPairEndToEndTests),
        nameof(PairEndToEndTests), nameof(ManifestsEndToEndTests), nameof(StatusPageEndToEndTests),
        nameof(WatchTests), nameof(ForwardingTests), nameof(OutboxTests), nameof(FeedTests),
    ];

    /// <remarks>A class without a collection of its own has one that is named after it.</remarks>
    public IEnumerable<ITestCollection> OrderTestCollections(IEnumerable<ITestCollection> testCollections) =>
        testCollections.OrderBy(c => Array.FindIndex(Longest, name => c.DisplayName.EndsWith("." + name, StringComparison.Ordinal)) is >= 0 and var at
            ? at : Longest.Length);
}
